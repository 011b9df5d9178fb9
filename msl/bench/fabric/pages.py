"""What the results are called and how they are explained; from samples to reports and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msl.bench import plots, size
from msl.bench.fabric.order import IN_FLIGHT
from msl.bench.fabric.parts import BULK_BYTES, Measured
from msl.bench.report import Report
from msl.bench.result import Ratio, values

_FRAMED = (
    "the loop of a job: an NSF is `NsfLoop` with an identity stage, and all members have its handshake, frames and"
    " `Link`, whose two threads send and receive"
)
_RAW = "no frames: an NSF is one thread that moves bytes both ways with epoll; the two ends use blocking sockets"
_SFC = "the fabric `sfc`: transparent sockets, SRv6 encapsulation and the eBPF proxy at each hop"
_DIRECT = "the fabric `direct`: plain TCP to the next hop's address in the testbed's fabric"
_RELAYED = {
    "sfc": f"{_FRAMED}; {_SFC}.",
    "direct": f"the very same members; {_DIRECT}.",
    "raw_sfc": f"{_RAW}; {_SFC}.",
    "raw_direct": f"the very same members; {_DIRECT}.",
}
_TRAINED = {
    "sfc": f"the job's chain; {_SFC}.",
    "direct": f"the same chain from the same seed on the same hosts; {_DIRECT}.",
}
_CEILING = {
    "srv6": "to the service address of a chain without NSFs: the head-end's route encapsulates at the source, the proxy"
    " decapsulates at the sink, and the same the other way.",
    "plain": "to the sink's address in the fabric.",
}
_COSTS = {
    "cpu_per_byte": "CPU of the machine, ns per byte",
    "member_cpu_per_byte": "CPU of the members, ns per byte",
    "packets_per_mib": "packets on the links, per MiB",
    "segments_per_mib": "TCP segments, per MiB",
    "sent_per_byte": "bytes on the links, per byte",
}
_SPLIT = {
    "user_per_byte": "user, ns per byte",
    "system_per_byte": "system, ns per byte",
    "softirq_per_byte": "softirq, ns per byte",
}
_WAYS = {"": "one way", "_both_ways": "both ways"}


class Quantity(NamedTuple):
    """What one table of the results is about."""

    title: str
    measured: str
    cases: Mapping[str, str]
    sides: Mapping[str, str]
    ratios: tuple[Ratio, ...]


def quantities(sizes: Sequence[int]) -> dict[str, Quantity]:
    """All that can be measured, by the name of its values.

    Args:
        sizes: bytes of the round trips' messages.
    """
    return {
        "rtt_us": Quantity(
            "Round trips through the chain",
            "Microseconds from before the source sends a message until it is back from the sink, with one message under"
            " way at a time; a sample is the median of 0.3 s of them. A framed message has 96 bytes more, a raw one"
            " none.",
            {size.name(num_bytes): size.show(num_bytes) for num_bytes in sizes},
            _RELAYED,
            _ratios("rtt{case}"),
        ),
        "rate_mib_s": Quantity(
            "Bulk throughput through the chain",
            f"Payload that arrives at the sink in MiB/s, in messages of {size.show(BULK_BYTES)}, at most {IN_FLIGHT} of"
            " them without an answer; a sample takes a second. Both ways: the answer is the message itself, and the"
            " rate is that of each way.",
            {"bulk": "one way", "bulk_both_ways": "both ways, each"},
            _RELAYED,
            _ratios("{case}"),
        ),
        "cost": Quantity(
            "What a byte of payload costs",
            "Counted over the bulk runs, per byte of payload that has gone all the way through the chain (a message"
            " that comes back counts twice). CPU of the machine is user, system, interrupts and softirqs of /proc/stat,"
            " of whatever else runs, too; CPU of the members is what their processes are charged with, which includes"
            " a part of the kernel's work. Packets and bytes on the links are those sent by all fabric interfaces of"
            " hosts and routers, as these count them: up to 64 KiB with segmentation offload are one packet with its"
            " headers once. TCP segments are the hosts' own count of what that would be on a wire, each once.",
            _both_ways(_COSTS),
            _RELAYED,
            _ratios("{case}"),
        ),
        "cpu_split": Quantity(
            "Where the CPU time goes",
            "The machine's CPU time of the table above. The kernel charges packets' way through a chain to softirq or"
            " to the system time of whoever happens to send.",
            _both_ways(_SPLIT),
            _RELAYED,
            (),
        ),
        "seconds_per_step": Quantity(
            "Training steps",
            "Seconds per optimizer step of the job's own chain, each fabric with a chain of its own, as `msl bench"
            " train` measures them, after one step that is not counted. The losses are compared bit for bit.",
            {"step": "one step"},
            _TRAINED,
            _ratios("{case}")[:1],
        ),
        "iperf_mib_s": Quantity(
            "The ceiling: iperf3 without any NSF",
            "MiB/s from the source's host to the sink's over one TCP connection, and in reverse; a sample takes two"
            " seconds.",
            {"iperf": "source to sink", "iperf_reverse": "sink to source"},
            _CEILING,
            (Ratio("{case}_srv6_over_plain", "srv6", "plain"),),
        ),
    }


def reports(
    measured: Measured,
    sizes: Sequence[int],
    command: str,
    machine: Mapping[str, str],
    findings: Mapping[str, list[str]],
) -> list[Report]:
    """A report for each quantity that was measured.

    Args:
        measured: samples by quantity.
        sizes: bytes of the round trips' messages.
        command: how the benchmark was started.
        machine: what it ran on.
        findings: sentences by quantity.
    """
    return [
        Report(
            "fabric",
            quantity.title,
            command,
            machine,
            name,
            quantity.measured,
            quantity.cases,
            quantity.sides,
            measured[name],
            quantity.ratios,
            findings.get(name, []),
        )
        for name, quantity in quantities(sizes).items()
        if name in measured
    ]


def plot(folder: Path, measured: Measured, sizes: Sequence[int]) -> None:
    """A picture of each part that was measured."""
    if found := measured.get("rtt_us"):
        positions = {size.name(num_bytes): num_bytes for num_bytes in sizes}
        labels = {size.name(num_bytes): size.show(num_bytes) for num_bytes in sizes}
        axes = ("message", "round trip in us: median, p10 to p90")
        plots.curves(folder / "round-trips.png", found, positions, labels, list(_RELAYED), axes)
    groups = _bars(measured, "rate_mib_s", {"bulk": "one way", "bulk_both_ways": "both ways,\neach"})
    for case, label in (("iperf", "iperf3, no NSF"), ("iperf_reverse", "iperf3, no NSF,\nreverse")):
        if found := measured.get("iperf_mib_s"):
            groups[label] = {"sfc": values(found, case, "srv6"), "direct": values(found, case, "plain")}
    if groups:
        plots.bars(folder / "throughput.png", groups, ("", "MiB/s: median, p10 to p90"))
    cases = {f"cpu_per_byte{suffix}": way for suffix, way in _WAYS.items()}
    if groups := _bars(measured, "cost", cases):
        plots.bars(folder / "cpu.png", groups, ("", "CPU ns per byte: median, p10 to p90"))
    if found := measured.get("seconds_per_step"):
        plots.rounds(folder / "steps.png", found, list(_TRAINED), ("round", "seconds per step"))


def _bars(measured: Measured, quantity: str, cases: Mapping[str, str]) -> dict[str, dict[str, list[float]]]:
    """A group of bars for each case of the NSF loop, then of the raw relays."""
    return {
        f"{loop}\n{way}": {fabric: values(found, case, prefix + fabric) for fabric in ("sfc", "direct")}
        for prefix, loop in (("", "NSF loop,"), ("raw_", "raw relay,"))
        for case, way in cases.items()
        if (found := measured.get(quantity))
    }


def _ratios(name: str) -> tuple[Ratio, ...]:
    return (
        Ratio(f"{name}_sfc_over_direct", "sfc", "direct"),
        Ratio(f"{name}_raw_sfc_over_direct", "raw_sfc", "raw_direct"),
    )


def _both_ways(cases: Mapping[str, str]) -> dict[str, str]:
    return {f"{case}{suffix}": f"{way}: {shown}" for suffix, way in _WAYS.items() for case, shown in cases.items()}
