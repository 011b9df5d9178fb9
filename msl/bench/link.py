"""`msl bench link`: how fast a hop moves activations, against a bare socket and against Ray's object store."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msl.actors.cluster import Session, session
from msl.actors.network import entered_network
from msl.bench import machine, plots, size
from msl.bench.calls import Actors, actors, answer
from msl.bench.ends import Receiver, Seen, Sender, Sent
from msl.bench.report import Report, ratio_lines, write
from msl.bench.result import Ratio, Sample, take_turns, values
from msl.config import Config
from msl.errors import NetworkError

IN_FLIGHT = 4
"""Messages without an answer: as many micro-batches as a chain of four stages has under way."""
WAYS = {
    "link": "the hop path of a job: `Link`, frames, `Connection` over TCP on loopback; a thread that sends and one that"
    " receives at each end, the tensor a view of the receive buffer, which is released once its answer is sent.",
    "raw": "the same bytes over a bare TCP socket on loopback: `sendmsg` and `recv_into` one preallocated buffer in one"
    " thread at each end, answers of the same length; no tensor is made.",
    "ray": "the tensor as argument of an actor's method, the actors on two raylets; Ray moves it from object store to"
    " object store, and the return of the call is the answer.",
    "ray_numpy": "the same with the tensor's NumPy view, of which Ray makes no copy on arrival.",
    "ray_same_raylet": "as `ray`, both actors on one raylet with its shared object store.",
    "ray_numpy_same_raylet": "as `ray_numpy`, both actors on one raylet.",
}
_MEASURED = (
    f"A sender process sends float32 tensors to a receiver process, at most {IN_FLIGHT} of them without an answer. The"
    " clock runs at the sender, from before the first message to after the last answer; the rate is payload bytes over"
    " that time. The receiver gets each message as a tensor and reads its last element, no more. All ways run between"
    " the same two processes (for the same-raylet rows, the receiver is a third one), and the sender sends"
    f" {IN_FLIGHT} tensors in turn. A first round is not counted. After each sample the number of messages and the last"
    " element that arrived are checked."
)
_HOSTS = ("a", "b")
_BYTES_PER_SAMPLE = 256 * 2**20
_FEWEST, _MOST = 16, 512
_SAMPLE_S = 300.0


def run(folder: Path, sizes: Sequence[int], rounds: int, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and write the results.

    Call it before the process starts threads: the cluster has a network namespace of its own.

    Args:
        folder: for the results.
        sizes: payload bytes of a message, multiples of 4.
        rounds: how often each way is measured at each size, after one round that is not counted.
        command: how the benchmark was started, for the record.
        say: told how it goes.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        MslError: what went wrong.
    """
    plots.require()
    found = machine.describe()
    config = _config(max(sizes))
    samples: list[Sample] = []
    with (
        entered_network(config, say) as network,
        session(config, _HOSTS, network, say) as cluster,
        actors() as started,
    ):
        hop = _Hop(cluster, started, max(sizes), config.timeouts.start_s)
        for turn in range(rounds + 1):
            measured = [sample for num_bytes in sizes for sample in hop.round(turn, num_bytes)]
            say(f"round {turn}/{rounds}{'' if turn else ' (not counted)'}: {_line(measured, sizes)}")
            if turn:
                samples += measured
    report = _report(samples, sizes, command, found)
    summary = write(folder, report)
    _plot(folder / "rates.png", samples, sizes)
    for line in ratio_lines(report):
        say(line)
    return summary


class _Hop:
    """A sender, a receiver on another host, and one on the sender's host."""

    def __init__(self, cluster: Session, started: Actors, largest: int, start_s: float) -> None:
        job = secrets.token_hex(16)
        here, there = (cluster.nodes[host] for host in _HOSTS)
        far, near = started.start(Receiver, there), started.start(Receiver, here)
        self._sender = started.start(Sender, here, IN_FLIGHT, far, near)
        answer(self._sender.__ray_ready__.remote(), "the sender", start_s)  # a receiver does not wait for long
        endpoints = answer(far.listen.remote(there.address, job, IN_FLIGHT, largest), "the receiver", start_s)
        answer(self._sender.connect.remote(here.address, job, largest, endpoints), "the sender", start_s)
        self._receivers = {way: near if way.endswith("same_raylet") else far for way in WAYS}

    def round(self, turn: int, num_bytes: int) -> list[Sample]:
        """Measure each way once at one size."""
        messages = min(_MOST, max(_FEWEST, _BYTES_PER_SAMPLE // num_bytes))
        samples = []
        for place, way in take_turns(list(WAYS), turn):
            seconds = self._measure(way, num_bytes, messages)
            rate = messages * num_bytes / 2**20 / seconds
            detail = {"bytes": num_bytes, "messages": messages, "seconds": seconds}
            samples.append(Sample(turn, place, size.name(num_bytes), way, rate, detail))
        return samples

    def _measure(self, way: str, num_bytes: int, messages: int) -> float:
        what = f"{way}, {size.show(num_bytes)}"
        receiver = self._receivers[way]
        before: Seen = answer(receiver.seen.remote(way), what, _SAMPLE_S)
        sent: Sent = answer(self._sender.measure.remote(way, num_bytes, messages), what, _SAMPLE_S)
        after: Seen = answer(receiver.seen.remote(way), what, _SAMPLE_S)
        if (after.received - before.received, after.last) != (messages, sent.last):
            raise NetworkError(f"{what}: of {messages} messages, {after.received - before.received} arrived as sent")
        return sent.seconds


def _config(largest: int) -> Config:
    """A cluster of two hosts; model and data must be named, but nothing is trained."""
    room = max(200, 4 * IN_FLIGHT * largest // 1_000_000)
    return Config.model_validate(
        {
            "name": "bench-link",
            "model": {"factory": "torch.nn:Identity"},
            "data": {"factory": "msl.data.synthetic:random_images"},
            "hosts": list(_HOSTS),
            "cluster": {"name": "bench-link", "object_store_mb": room},
        }
    )


def _report(samples: Sequence[Sample], sizes: Sequence[int], command: str, found: Mapping[str, str]) -> Report:
    return Report(
        bench="link",
        title="One hop: activations from process to process",
        command=command,
        machine=found,
        quantity="rate_mib_s",
        measured=_MEASURED,
        cases={size.name(num_bytes): size.show(num_bytes) for num_bytes in sizes},
        sides=WAYS,
        samples=samples,
        ratios=[Ratio(f"link_over_{way}_{{case}}", "link", way) for way in WAYS if way != "link"],
    )


def _line(measured: Sequence[Sample], sizes: Sequence[int]) -> str:
    """The largest size's rates of one round."""
    largest = size.name(max(sizes))
    rates = {way: values(measured, largest, way)[0] for way in ("link", "raw", "ray")}
    return f"{size.show(max(sizes))} at " + ", ".join(f"{way} {rate:.0f} MiB/s" for way, rate in rates.items())


def _plot(path: Path, samples: Sequence[Sample], sizes: Sequence[int]) -> None:
    plots.curves(
        path,
        samples,
        {size.name(num_bytes): num_bytes for num_bytes in sizes},
        {size.name(num_bytes): size.show(num_bytes) for num_bytes in sizes},
        list(WAYS),
        ("message", "MiB/s one way: median, p10 to p90"),
    )
