"""The two ends of a benchmarked hop as Ray actors: all ways to send run between the same two processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
import torch

from msl.bench.hop import HopReceiver, HopSender
from msl.bench.raw import RawReceiver, RawSender
from msl.bench.window import timed
from msl.net.fabric import Endpoint
from msl.pipeline.runtime import set_threads


class Endpoints(NamedTuple):
    """Where a receiver is reached."""

    link: Endpoint
    raw: Endpoint


class Seen(NamedTuple):
    """What a receiver has got over one way."""

    received: int
    last: float
    """Last element of the last tensor."""


class Sent(NamedTuple):
    """What a sender has sent over one way."""

    seconds: float
    """Until the last message was answered."""
    last: float
    """Last element of the last tensor."""


@ray.remote
class Receiver:
    """The receiving end of all ways."""

    def __init__(self) -> None:
        set_threads(1)
        self._received = 0
        self._last = 0.0

    def listen(self, address: str, job: str, in_flight: int, largest: int) -> Endpoints:
        """Wait for a sender's sockets.

        Args:
            address: of this host.
            job: identifier of the run.
            in_flight: the window.
            largest: payload bytes of the largest message.
        """
        self._hop = HopReceiver(address, job, in_flight, frame_limit(largest))
        self._raw = RawReceiver(address, largest)
        return Endpoints(self._hop.endpoint, self._raw.endpoint)

    def take(self, tensor: torch.Tensor) -> None:
        """Receive a message over Ray; the return of the call is the answer."""
        self._last = tensor.view(-1)[-1].item()
        self._received += 1

    def take_array(self, array: Any) -> None:
        """As `take`, for a tensor that was sent as its NumPy view."""
        self.take(torch.from_numpy(array))

    def seen(self, way: str) -> Seen:
        """What has come so far."""
        if way == "link":
            return Seen(self._hop.received, self._hop.last)
        if way == "raw":
            return Seen(self._raw.received, self._raw.last)
        return Seen(self._received, self._last)


class Way(NamedTuple):
    """How a tensor is sent, and how the answer to the oldest one is waited for."""

    send: Callable[[int, torch.Tensor], None]
    await_answer: Callable[[], None]


def _over_ray(take: Any, as_array: bool) -> Way:
    """Calls of a receiver's method with the tensor as argument; Ray puts it into its object store."""
    calls: deque[Any] = deque()

    def send(_number: int, tensor: torch.Tensor) -> None:
        calls.append(take.remote(tensor.numpy() if as_array else tensor))

    def await_answer() -> None:
        ray.get(calls.popleft())

    return Way(send, await_answer)


def frame_limit(largest: int) -> int:
    """Largest frame body that a hop must accept for messages of at most `largest` bytes."""
    return largest + 4096


@ray.remote
class Sender:
    """The sending end of all ways.

    Args:
        in_flight: the window; also the number of tensors that are sent in turn.
        far: the receiver on the other host.
        near: a receiver on the same host.
    """

    def __init__(self, in_flight: int, far: Any, near: Any) -> None:
        set_threads(1)
        self._in_flight = in_flight
        self._filled = 0
        self._ways: dict[str, Way] = {
            "ray": _over_ray(far.take, as_array=False),
            "ray_numpy": _over_ray(far.take_array, as_array=True),
            "ray_same_raylet": _over_ray(near.take, as_array=False),
            "ray_numpy_same_raylet": _over_ray(near.take_array, as_array=True),
        }

    def connect(self, address: str, job: str, largest: int, endpoints: Endpoints) -> None:
        """Open the sockets to the far receiver.

        Args:
            address: of this host.
            job: identifier of the run.
            largest: payload bytes of the largest message.
            endpoints: where the far receiver listens.
        """
        hop = HopSender(address, endpoints.link, job, self._in_flight, frame_limit(largest))
        raw = RawSender(address, endpoints.raw)
        self._ways |= {"link": Way(hop.send, hop.await_answer), "raw": Way(raw.send, raw.await_answer)}

    def measure(self, way: str, num_bytes: int, messages: int) -> Sent:
        """Send so many float32 tensors of `num_bytes` each over one way."""
        tensors = [self._fill(num_bytes // 4) for _ in range(self._in_flight)]
        send, await_answer = self._ways[way]
        seconds = timed(
            messages, self._in_flight, lambda number: send(number, tensors[number % self._in_flight]), await_answer
        )
        return Sent(seconds, tensors[(messages - 1) % self._in_flight][-1].item())

    def _fill(self, elements: int) -> torch.Tensor:
        """A tensor of a number that no tensor before had."""
        self._filled += 1
        return torch.full((elements,), float(self._filled))
