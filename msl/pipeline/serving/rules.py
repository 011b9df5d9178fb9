"""What a hop of a service must know, and what it lets pass: HELLO, WELCOME and requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msl.config import Config
from msl.errors import NetworkError, ProtocolError
from msl.net.connection import Frame
from msl.net.frame import DType, Flag, Kind, Role, TensorFlag
from msl.plan import InputSpec, Place, Plan

_SHOWN = 200


@dataclass(frozen=True)
class HopRules:
    """One hop of a service."""

    service: str
    """Name of the service, which a client says in its HELLO."""
    hop: int
    """Place in the chain; the first hop, which clients connect to, is 1."""
    name: str
    host: str
    next_peer: str | None
    """Who the next hop is, for error messages; None at the sink."""
    job: str
    """Identifier of this start of the service, known to its hops only: 32 hexadecimal digits."""
    schema: str
    """Digest of what all hops must agree on; see `msl.plan`."""
    inputs: tuple[InputSpec, ...]
    """The model's inputs."""
    step: int
    """Optimizer steps that the weights have behind them when the service starts."""
    in_flight: int = 8
    """Requests of one connection that are taken in before the first of them is answered."""
    max_samples: int = 1024
    """Samples of a request."""
    max_sessions: int = 1024
    max_body: int = 2**29
    memory_bytes: int = 2**29
    """Most memory for requests that are received or wait; a single one may need more."""
    connect_s: float = 20.0
    silence_s: float = 20.0
    """Longest time that a peer may make no progress within a frame."""
    answer_s: float = 600.0
    """Longest wait for the next hop's answer."""

    @property
    def first(self) -> bool:
        """Whether clients connect here."""
        return self.hop == 1

    def check_hello(self, document: Mapping[str, Any]) -> None:
        """Refuse a HELLO that is not for this hop.

        Raises:
            ProtocolError: what is wrong with it.
        """
        expected = {"service": self.service} if self.first else self._inner_hello(self.hop)
        if set(document) != set(expected):
            found = ", ".join(map(repr, document))[:_SHOWN] or "none"
            raise ProtocolError(f"a HELLO to this hop has the fields {', '.join(expected)}, not {found}")
        for name, wanted in expected.items():
            if document[name] != wanted or type(document[name]) is not type(wanted):
                shown = "another start of the service" if name == "job" else f"{name} {document[name]!r:.{_SHOWN}}"
                raise ProtocolError(f"the HELLO is for {shown}" + (f", not {wanted!r}" if name != "job" else ""))

    def hello_onward(self) -> dict[str, Any]:
        """The HELLO to the next hop."""
        return self._inner_hello(self.hop + 1)

    def _inner_hello(self, hop: int) -> dict[str, Any]:
        return {"service": self.service, "hop": hop, "job": self.job, "schema": self.schema}

    def welcome(self, behind: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        """The WELCOME to the previous hop.

        Args:
            behind: the path that the next hop's WELCOME listed; empty at the sink.
            step: optimizer steps that the weights have behind them.
        """
        own = {"hop": self.hop, "name": self.name, "host": self.host}
        document: dict[str, Any] = {"path": [own, *behind]}
        if self.first:
            inputs = [{"shape": list(spec.shape), "dtype": spec.dtype} for spec in self.inputs]
            document |= {
                "service": self.service,
                "step": step,
                "inputs": inputs,
                "in_flight": self.in_flight,
                "max_samples": self.max_samples,
            }
        return document

    def check_request(self, frame: Frame) -> int:
        """Refuse what is no request, whatever is in its payloads; returns its number of samples.

        Raises:
            ProtocolError: what is wrong with it.
        """
        header = frame.header
        if frame.kind is not Kind.FORWARD or Flag.TRAIN in header.flags:
            raise ProtocolError(f"a {frame.kind.name} frame{' to train' * bool(header.flags)}; a client sends FORWARD")
        if any(spec.role is not Role.SMASHED or spec.flags & TensorFlag.ABSENT for spec in frame.specs):
            raise ProtocolError("a request holds the model's inputs alone: role SMASHED, and none absent")
        samples = self.samples_of(frame)
        if not self.first:
            return samples
        if len(frame.specs) != len(self.inputs):
            raise ProtocolError(f"a request of {len(frame.specs)} tensors; the model has {len(self.inputs)} inputs")
        for index, (spec, wanted) in enumerate(zip(frame.specs, self.inputs, strict=True)):
            if spec.dtype is not DType[wanted.dtype.upper()]:
                raise ProtocolError(f"input {index} is of {spec.dtype.name.lower()}; it must be of {wanted.dtype}")
            if not spec.shape or spec.shape[1:] != wanted.shape or spec.shape[0] != samples:
                shape = ", ".join(map(str, ("n", *wanted.shape)))
                raise ProtocolError(f"input {index} has the shape {spec.shape}; it must be ({shape})")
        if not 1 <= samples <= self.max_samples:
            raise ProtocolError(f"a request of {samples} samples; 1 to {self.max_samples} are allowed")
        return samples

    def samples_of(self, request: Frame) -> int:
        """The number of samples of a request; as the hop before says it, where clients do not connect."""
        if not self.first:
            return request.header.batch_samples
        return request.specs[0].shape[0] if request.specs[0].shape else 0


def rules_of(
    config: Config,
    plan: Plan,
    place: Place,
    hop: int,
    step: int,
    job: str = "",
    schema: str = "",
    onward: str | None = None,
) -> HopRules:
    """The rules of one hop of a job.

    Args:
        config: the job's configuration.
        plan: its plan.
        place: who the hop is.
        hop: its place as seen from the clients; see `HopRules.hop`.
        step: optimizer steps that the weights have behind them.
        job: see `HopRules.job`; not needed where there is one hop only.
        schema: as `job`.
        onward: who the next hop is; None at the last one.
    """
    serve, timeouts = config.serve, config.timeouts
    return HopRules(
        config.name,
        hop,
        place.name,
        place.host,
        onward,
        job,
        schema,
        plan.inputs,
        step,
        serve.in_flight,
        serve.max_samples,
        serve.max_connections,
        config.max_frame_mb * 2**20,
        serve.memory_mb * 2**20,
        timeouts.connect_s,
        timeouts.silence_s,
        timeouts.step_s,
    )


def read_welcome(frame: Frame, peer: str) -> list[dict[str, Any]]:
    """The path of the next hop's WELCOME.

    Raises:
        NetworkError: it refused.
        ProtocolError: it answered with something else.
    """
    if frame.kind is Kind.ERROR:
        reason = " ".join(str(frame.document.get("message")).split())[:1000]
        raise NetworkError(f"{peer} refused the connection: {reason}")
    path = frame.document.get("path")
    if frame.kind is not Kind.WELCOME or not isinstance(path, list):
        raise ProtocolError(f"{peer} answered a HELLO with {frame.kind.name}")
    return path
