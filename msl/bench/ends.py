"""The two ends of a benchmarked hop as Ray actors: all ways to send run between the same two processes."""

from __future__ import annotations

from collections import deque
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


@ray.remote
class Receiver:
    """The receiving end of all ways.

    Args:
        address: of its host.
        job: identifier of the run.
        in_flight: the window.
        largest: payload bytes of the largest message.
    """

    def __init__(self, address: str, job: str, in_flight: int, largest: int) -> None:
        set_threads(1)
        self._hop = HopReceiver(address, job, in_flight, 2 * largest)
        self._raw = RawReceiver(address, largest)
        self._received = 0
        self._last = 0.0

    def endpoints(self) -> Endpoints:
        """Where it listens."""
        return Endpoints(self._hop.endpoint, self._raw.endpoint)

    def takenp(self, array) -> None:
        tensor = torch.from_numpy(array)
        self._last = tensor.view(-1)[-1].item()
        self._received += 1

    def take(self, tensor: torch.Tensor) -> None:
        """Receive a message over Ray; the return of the call is the answer."""
        self._last = tensor.view(-1)[-1].item()
        self._received += 1

    def seen(self, way: str) -> Seen:
        """What has come so far."""
        if way == "link":
            return Seen(self._hop.received, self._hop.last)
        if way == "raw":
            return Seen(self._raw.received, self._raw.last)
        return Seen(self._received, self._last)


@ray.remote
class Sender:
    """The sending end of all ways.

    Args:
        address: of its host.
        job: identifier of the run.
        in_flight: the window; also the number of tensors that are sent in turn.
        largest: payload bytes of the largest message.
        endpoints: of the receiver on the other host.
        far: the receiver on the other host.
        near: a receiver on the same host.
    """

    def __init__(
        self, address: str, job: str, in_flight: int, largest: int, endpoints: Endpoints, far: Any, near: Any
    ) -> None:
        set_threads(1)
        self._in_flight = in_flight
        self._hop = HopSender(address, endpoints.link, job, in_flight, 2 * largest)
        self._raw = RawSender(address, endpoints.raw)
        self._receivers = {"ray": far, "ray_same_raylet": near, "raynp": far, "raynp_same": near}

    def measure(self, way: str, num_bytes: int, messages: int) -> tuple[float, float]:
        """Send so many float32 tensors of `num_bytes` each over one way.

        Returns:
            Seconds until the last one was answered, and the last element of the last tensor.
        """
        tensors = [torch.full((num_bytes // 4,), float(1 + index)) for index in range(self._in_flight)]
        last = tensors[(messages - 1) % self._in_flight][-1].item()
        if way in self._receivers:
            return self._over_ray(self._receivers[way], tensors, messages, way), last
        path = self._hop if way == "link" else self._raw
        seconds = timed(
            messages,
            self._in_flight,
            lambda number: path.send(number, tensors[number % self._in_flight]),
            path.await_answer,
        )
        return seconds, last

    def _over_ray(self, receiver: Any, tensors: list[torch.Tensor], messages: int, way) -> float:
        calls: deque[Any] = deque()
        return timed(
            messages,
            self._in_flight,
            lambda number: calls.append(
                receiver.take.remote(tensors[number % self._in_flight])
                if "np" not in way
                else receiver.takenp.remote(tensors[number % self._in_flight].numpy())
            ),
            lambda: ray.get(calls.popleft()),
        )
