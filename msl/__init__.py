"""msl: multi-hop split learning and split inference over a chain of Neural Service Functions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msl.client import Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    """The client, imported when it is asked for: `import msl` alone loads no library."""
    if name == "Client":
        from msl.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
