"""The command line: the only place that prints."""

from msl.cli.main import main

__all__ = ["main"]
