"""msl: multi-hop split learning and split inference over a chain of Neural Service Functions."""

__version__ = "0.1.0"
