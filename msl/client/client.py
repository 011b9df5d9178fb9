"""The connection to a service."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msl.client.pending import Pending
from msl.client.tensors import Described, described, is_torch
from msl.errors import ConfigError, MslError, NetworkError, ProtocolError, StageError
from msl.net.arrays import Array
from msl.net.buffers import BufferPool
from msl.net.connection import Frame
from msl.net.fabric import Endpoint
from msl.net.frame import Flag, Header, Kind
from msl.net.stream import Stream
from msl.net.trace import now_ns
from msl.plan import InputSpec

if TYPE_CHECKING:
    import torch

_LONGEST_REASON = 1000
"""Characters of a service's reason that are repeated in a message."""
_NUMBERS = 2**32
"""Requests are numbered in 32 bits of a frame's header, round and round."""
_ERRORS: Mapping[str, type[MslError]] = {kind.__name__: kind for kind in (NetworkError, ProtocolError, StageError)}


class Client:
    """A connection to a service; to be used from one thread at a time, and to be closed.

    After an error of the network or of the service the connection is closed, and every call fails. What is wrong with
    the inputs is found before anything is sent, and the client can be used on.

    Args:
        address: (host, port), or `HOST:PORT`, or `[IPV6]:PORT`.
        service: its name.
        timeout_s: longest wait for an answer, and for a request to be taken.
        connect_s: longest wait for the connection, and for the service's WELCOME.
        max_frame_mb: largest answer that is accepted, in MiB.

    Raises:
        ConfigError: no address.
        NetworkError: nobody answers there.
        MslError: the service refuses, and why.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        service: str,
        timeout_s: float = 60.0,
        connect_s: float = 20.0,
        max_frame_mb: int = 512,
    ) -> None:
        endpoint = _endpoint(address)
        self._peer = f"the service {service!r} at {endpoint}"
        self._timeout_s = timeout_s
        self._unanswered: deque[Pending] = deque()
        self._number = 0
        self._fault: MslError | None = None
        self._stream = Stream(_connect(endpoint, connect_s), self._peer, BufferPool().lease)
        self._readable, self._ready = select.poll(), select.poll()
        self._readable.register(self._stream, select.POLLIN)
        self._ready.register(self._stream, select.POLLIN | select.POLLOUT)
        try:
            self._open(service, connect_s)
        except BaseException:
            self.close()
            raise
        self._stream.max_body = max_frame_mb * 2**20

    def _open(self, service: str, connect_s: float) -> None:
        self._stream.send_document(Header(Kind.HELLO), {"service": service})
        frame = self._receive(time.monotonic() + connect_s, f"no WELCOME from {self._peer} within {connect_s:g} s")
        if frame.kind is not Kind.WELCOME:
            raise ProtocolError(f"{self._peer} answered a HELLO with {frame.kind.name}")
        welcome = frame.document
        try:
            self._path = tuple(dict(hop) for hop in welcome["path"])
            self._inputs = tuple(InputSpec(tuple(spec["shape"]), str(spec["dtype"])) for spec in welcome["inputs"])
            self._step = int(welcome["step"])
            self._in_flight = max(1, int(welcome["in_flight"]))
            self._max_samples = int(welcome["max_samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a WELCOME of {self._peer} that cannot be read: {error!r}") from error

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the model takes; shapes are without the batch dimension."""
        return self._inputs

    @property
    def path(self) -> tuple[Mapping[str, Any], ...]:
        """The hops that requests pass, each with `hop`, `name` and `host`."""
        return self._path

    @property
    def step(self) -> int:
        """Optimizer steps that the service's weights had behind them when it said WELCOME."""
        return self._step

    @property
    def in_flight(self) -> int:
        """Requests that the service takes in before it has answered the first of them."""
        return self._in_flight

    @property
    def max_samples(self) -> int:
        """Most samples of a request."""
        return self._max_samples

    def predict(self, *inputs: Array | torch.Tensor) -> Any:
        """What the model makes of its inputs.

        Args:
            inputs: as many as the model has, of its element types, each of shape (n, ...) with the same n from 1 to
                `max_samples`.

        Returns:
            An array, or a tuple if the model has several outputs; torch tensors (on the CPU) if an input is one.

        Raises:
            ConfigError: the inputs are not the model's.
            NetworkError: the service is gone, or did not answer in time.
            MslError: it failed; the message names host and stage.
        """
        return self.submit(*inputs).result()

    def submit(self, *inputs: Array | torch.Tensor, trace: bool = False) -> Pending:
        """Send a request, and do not wait for its answer; raises as `predict` does.

        The inputs may be changed once this returns. While `in_flight` requests are without an answer, it first waits
        for the oldest one's; answers are kept until they are asked for.

        Args:
            inputs: as for `predict`.
            trace: have each hop tell its times, see `Pending.trace`.
        """
        begin_ns = now_ns()
        tensors = described(inputs, self._inputs, self._max_samples)
        while len(self._unanswered) >= self._in_flight:
            self._take_answer()
        self._check_open()
        pending = Pending(self._take_answer, self._number, any(map(is_torch, inputs)), trace)
        self._number = (self._number + 1) % _NUMBERS
        self._unanswered.append(pending)
        encoded_ns = now_ns()
        try:
            self._send(pending.number, tensors, trace)
        except BaseException as error:  # of whatever kind: the stream may stand in the middle of a frame
            self._end(error)
            raise
        pending.times_ns = begin_ns, encoded_ns, now_ns()
        return pending

    def close(self) -> None:
        """Close the connection; requests without an answer fail."""
        self._end(None)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, number: int, tensors: Sequence[Described], trace: bool) -> None:
        """Have a request taken. Answers are read meanwhile, so that the two sides cannot wait for each other."""
        header = Header(Kind.FORWARD, Flag.TRACE if trace else Flag(0), 0, number)
        deadline = time.monotonic() + self._timeout_s
        specs, payloads = [spec for spec, _ in tensors], [payload for _, payload in tensors]
        taken = self._push(lambda: self._stream.send(header, specs, payloads))
        while not taken:
            late = f"{self._peer} did not take a request within {self._timeout_s:g} s"
            self._wait(self._ready, deadline, late)
            self._take_arrived()
            taken = self._push(self._stream.flush)

    def _push(self, push: Callable[[], bool]) -> bool:
        try:
            return push()
        except NetworkError:
            self._take_arrived()  # if it has said why, this tells
            raise

    def _take_answer(self) -> None:
        """Wait for the answer to the oldest request."""
        self._check_open()
        late = f"no answer from {self._peer} within {self._timeout_s:g} s"
        try:
            self._answer(self._receive(time.monotonic() + self._timeout_s, late))
        except MslError as error:
            self._end(error)
            raise

    def _take_arrived(self) -> None:
        while (frame := self._read()) is not None:
            self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        arrived_ns = self._stream.header_ns, now_ns()
        try:
            pending = self._unanswered[0] if self._unanswered else None
            if pending is None or frame.kind is not Kind.RESULT or frame.header.micro_batch != pending.number:
                number = frame.header.micro_batch
                raise ProtocolError(f"a {frame.kind.name} of request {number} of {self._peer} that was not due")
            pending.take(frame, arrived_ns, self._path)
            self._unanswered.popleft()
        finally:
            frame.release()

    def _receive(self, deadline: float, late: str) -> Frame:
        while (frame := self._read()) is None:
            self._wait(self._readable, deadline, late)
        return frame

    def _read(self) -> Frame | None:
        """The next frame but PINGs, or None if it has not arrived yet."""
        while True:
            try:
                frame = self._stream.read()
            except EOFError:
                raise NetworkError(f"{self._peer} closed the connection") from None
            if frame is not None and frame.kind is Kind.ERROR:
                raise _failure(frame.document)
            if frame is None or frame.kind is not Kind.PING:
                return frame

    def _wait(self, poll: select.poll, deadline: float, late: str) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1e3):
            raise NetworkError(late)

    def _check_open(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _end(self, error: BaseException | None) -> None:
        """Close; all that is under way fails, and all that follows."""
        if self._fault is None:
            closed = NetworkError(f"the connection to {self._peer} was closed on this side")
            self._fault = error if isinstance(error, MslError) else closed
            self._stream.close()
            for pending in self._unanswered:
                pending.fail(self._fault)
            self._unanswered.clear()


def _failure(document: Mapping[str, Any]) -> MslError:
    """The error that an ERROR frame tells of."""
    host, stage, reason = (
        " ".join(str(document.get(name, "?")).split())[:_LONGEST_REASON] for name in ("host", "stage", "message")
    )
    return _ERRORS.get(str(document.get("kind")), MslError)(f"host {host}, stage {stage}: {reason}")


def _endpoint(address: str | tuple[str, int]) -> Endpoint:
    if isinstance(address, tuple):
        return Endpoint(*address)
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host) != bracketed or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"no address of a service: {address!r}; write HOST:PORT, or [ADDRESS]:PORT with IPv6")
    return Endpoint(host.strip("[]"), int(port))


def _connect(endpoint: Endpoint, connect_s: float) -> socket.socket:
    try:
        return socket.create_connection(endpoint, timeout=connect_s)
    except TimeoutError as error:
        raise NetworkError(f"no answer from {endpoint} within {connect_s:g} s") from error
    except (OSError, UnicodeError) as error:  # a host that is no name at all is a UnicodeError
        raise NetworkError(f"cannot connect to {endpoint}: {getattr(error, 'strerror', None) or error}") from error
