"""The trace of a request as a drawing of lines of text: each activity as a bar at its place in time."""

from __future__ import annotations

from dataclasses import dataclass

from msl.net.trace import Trace

_CLIENT = "client"
_NETWORK = "network"
_BAR, _NETWORK_BAR = "█", "░"
_WIDEST_NAME = 24


@dataclass(frozen=True)
class Activity:
    """What somebody did for a request."""

    who: str
    """The client, or a hop's name."""
    what: str
    begin_ns: int
    """Since the request was asked for."""
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.begin_ns


def activities(trace: Trace) -> list[Activity]:
    """All that was done for a request, in order, on one clock.

    Clocks of hosts are not comparable. What a hop did is put into the middle of the gap in which the hop before waited
    for it: as if the network took as long one way as back.
    """
    client = trace.client
    there = [
        Activity(_CLIENT, "serialise", 0, client.encoded_ns - client.begin_ns),
        Activity(_CLIENT, "send", client.encoded_ns - client.begin_ns, client.sent_ns - client.begin_ns),
    ]
    back = [
        Activity(_CLIENT, "serialise", client.received_ns - client.begin_ns, trace.total_ns),
        Activity(_CLIENT, "receive", client.answer_ns - client.begin_ns, client.received_ns - client.begin_ns),
    ]
    sent, answer = client.sent_ns - client.begin_ns, client.answer_ns - client.begin_ns
    for name, hop, network in zip(trace.names, trace.hops, trace.network_ns, strict=True):
        begin = sent + network // 2
        shift = begin - hop.received_ns
        there += [
            Activity(name, _NETWORK, sent, begin),
            Activity(name, "queue", begin, hop.taken_ns + shift),
            Activity(name, "compute", hop.taken_ns + shift, hop.computed_ns + shift),
            Activity(name, "serialise", hop.computed_ns + shift, hop.encoded_ns + shift),
            Activity(name, "send", hop.encoded_ns + shift, hop.sent_ns + shift),
        ]
        back += [
            Activity(name, _NETWORK, hop.answered_ns + shift, answer),
            Activity(name, "receive", hop.answer_ns + shift, hop.answered_ns + shift),
        ]
        sent, answer = hop.sent_ns + shift, hop.answer_ns + shift
    there.pop()  # the sink sends nothing on; what it sends is its answer
    sink = back.pop()
    return [*there, Activity(sink.who, "send", sink.begin_ns, sink.end_ns), *back[::-1]]


def waterfall(trace: Trace, width: int = 100) -> list[str]:
    """Lines of `width` characters, 60 at least: a bar for each activity; then the sums over the whole way."""
    shown = activities(trace)
    names = min(max(len(activity.who) for activity in shown), _WIDEST_NAME)
    room = max(10, width - names - len(" serialise  ") - len(" 00000.000 ms"))
    lines = []
    before = ""
    for activity in shown:
        who = activity.who if activity.who != before else ""
        before = activity.who
        bar = _bar(activity, max(1, trace.total_ns), room)
        duration_ms = max(0, activity.duration_ns) / 1e6
        lines.append(f"{who[:names]:<{names}} {activity.what:<9}  {bar:<{room}} {duration_ms:>9.3f} ms")
    sums = {
        "compute": sum(hop.compute_ns for hop in trace.hops),
        "queue": sum(hop.queue_ns for hop in trace.hops),
        "network": sum(trace.network_ns),
    }
    parts = [f"{what} {total / trace.total_ns:.0%}" for what, total in sums.items() if trace.total_ns]
    return [*lines, f"{trace.total_ns / 1e6:.3f} ms in all: {', '.join(parts)}"]


def _bar(activity: Activity, total_ns: int, room: int) -> str:
    """A bar of one character at least, at its place in a line of `room` characters."""
    begin = min(room - 1, max(0, activity.begin_ns * room // total_ns))
    end = min(room, max(begin + 1, round(activity.end_ns * room / total_ns)))
    return " " * begin + (_NETWORK_BAR if activity.what == _NETWORK else _BAR) * (end - begin)
