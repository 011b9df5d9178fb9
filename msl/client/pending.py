"""A request that was sent, and the answer that it gets or does not get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msl.client.tensors import output_at
from msl.errors import ConfigError, MslError
from msl.net.connection import Frame
from msl.net.frame import Role
from msl.net.trace import ClientTimes, Trace, assemble, decode_times, now_ns


class Pending:
    """A request that was sent; made by `Client.submit`."""

    def __init__(self, wait: Callable[[], None], number: int, as_torch: bool, traced: bool) -> None:
        self.number = number
        """As it stands in the frame's header."""
        self.trace: Trace | None = None
        """Where the time went, if that was asked for and the answer is there."""
        self.times_ns = (0, 0, 0)
        """The request was asked for, its frame was ready, and given to the socket."""
        self._wait = wait
        self._as_torch = as_torch
        self._traced = traced
        self._outputs: Any = None
        self._error: MslError | None = None
        self._answered = False

    @property
    def done(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._answered or self._error is not None

    def result(self) -> Any:
        """Wait for the answer; returns and raises as `Client.predict` does."""
        while not self.done:
            self._wait()
        if self._error is not None:
            raise self._error
        return self._outputs

    def take(self, frame: Frame, arrived_ns: tuple[int, int], path: Sequence[Mapping[str, Any]]) -> None:
        """The answer has arrived: make outputs of it that own their memory."""
        tensors = list(zip(frame.specs, frame.payloads, strict=True))
        results = [(spec, payload) for spec, payload in tensors if spec.role is Role.SMASHED]
        try:
            outputs = tuple(output_at(*one, self._as_torch) for one in results)
            self._outputs = outputs[0] if len(outputs) == 1 else outputs
        except ConfigError as error:
            self._error = ConfigError(f"the model returns {error}: pass torch tensors")
        if self._traced:
            client = ClientTimes(*self.times_ns, *arrived_ns, now_ns())
            hops = [decode_times(spec, payload) for spec, payload in tensors if spec.role is Role.TRACE]
            self.trace = assemble(client, hops, path)
        self._answered = True

    def fail(self, error: MslError) -> None:
        """There will be no answer."""
        self._error = error
