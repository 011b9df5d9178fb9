"""Calls what a configuration names by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from msl.config import Factory
from msl.errors import ConfigError, MslError


def resolve(where: str, path: str) -> Callable[..., Any]:
    """The function or class at `package.module:name`.

    Raises:
        ConfigError: names `where` in the configuration, and the module or name that is not there.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}.factory: {path}: no module {error.name!r}; it must be importable on every host (installed,"
            " or in the folder where msl is started)"
        ) from error
    except Exception as error:
        raise ConfigError(f"{where}.factory: importing {module_name} failed: {_first_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{where}.factory: {path}: no {part!r} in {module_name}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where}.factory: {path} is not a function or class")
    return found  # type: ignore[no-any-return]


def make(where: str, factory: Factory, *positional: Any, substitute: Mapping[str, Any] | None = None) -> Any:
    """Call a factory with its configured arguments.

    Args:
        where: path of the factory in the configuration, for error messages.
        factory: what to call.
        positional: arguments that msl gives, before the configured ones.
        substitute: values for arguments written as `$name`.

    Raises:
        ConfigError: not importable, or the call failed.
    """
    function = resolve(where, factory.factory)
    arguments = {}
    for name, value in factory.args.items():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in (substitute or {}):
                known = ", ".join(f"${key}" for key in substitute or {}) or "none here"
                raise ConfigError(f"{where}.args.{name}: unknown {value!r}; there are: {known}")
            value = (substitute or {})[value[1:]]
        arguments[name] = value
    try:
        return function(*positional, **arguments)
    except MslError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {factory.factory} with {arguments} failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
