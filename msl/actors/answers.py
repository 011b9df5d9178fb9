"""Answers of Ray actors, and Ray's errors in the project's own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from msl.errors import ClusterError, ConfigError, MslError, StageError


def answer(
    reference: Any, where: str, timeout_s: float, gone: Callable[[RayActorError], MslError], setting: str = ""
) -> Any:
    """Wait for an actor's answer.

    Args:
        reference: of the call.
        where: who was asked, for error messages.
        timeout_s: deadline.
        gone: what it means if the actor is gone.
        setting: what the deadline was taken from, for its error message.

    Raises:
        MslError: what the actor could not do, or that it is gone or gave no answer in time.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        raise unwrap(error, where) from error
    except RayActorError as error:
        raise gone(error) from error
    except GetTimeoutError as error:
        raise ClusterError(f"{where}: no answer within {timeout_s:.0f} s{setting}") from error


def unwrap(error: RayTaskError, where: str) -> MslError:
    """The error that a member raised, with its place in front."""
    cause = error.cause
    if isinstance(cause, MslError):
        return type(cause)(f"{where}: {cause}")
    last = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
    return StageError(f"{where}: {last}")


def creation_error(error: RayActorError, where: str) -> MslError:
    """Why an actor could not be made: the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    name, _, message = last.partition(": ")
    if name.endswith("ConfigError"):
        return ConfigError(f"{where}: {message}")
    return StageError(f"{where}: {last}")
