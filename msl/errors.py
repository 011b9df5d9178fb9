"""The one exception tree of msl; the CLI prints the message on one line and exits with `exit_code`."""

from __future__ import annotations


class MslError(Exception):
    """Whatever msl refuses or fails at, told in one line that names what is wrong and what would be right."""

    exit_code = 1


class ConfigError(MslError):
    """What was asked for cannot be: a config value, a cut, a model that cannot be traced."""

    exit_code = 2


class ClusterError(MslError):
    """The Ray cluster or one of its hosts did not start, could not be reached, or is gone."""

    exit_code = 3


class NetworkError(MslError):
    """A hop of the chain broke: refused, reset, closed early, or silent past its deadline."""

    exit_code = 4


class ProtocolError(NetworkError):
    """A peer sent something that docs/protocol.md does not allow; the connection is closed."""


class StageError(MslError):
    """A stage failed, or its host died; the message names host, stage and step."""

    exit_code = 5


class CheckpointError(MslError):
    """A checkpoint is half-written, foreign, or does not fit the model; it is refused by its name."""

    exit_code = 6
