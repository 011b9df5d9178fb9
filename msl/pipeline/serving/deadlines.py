"""How long a session may wait, for what."""

from __future__ import annotations

from msl.net.trace import now_ns
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.session import Session, State

HELLO_S = 5.0
"""A connection that has not said HELLO after this time is closed."""


def overdue(session: Session, now: float, rules: HopRules, contended: bool, reading: bool) -> str | None:
    """Why a session has waited too long, if it has.

    Args:
        session: which.
        now: the monotonic clock, in seconds.
        rules: the hop's.
        contended: others wait for memory.
        reading: the session's client is being read from.
    """
    waited = now - session.since_s
    following, previous = session.following, session.previous
    if session.state is State.GREETING and waited > HELLO_S:
        return f"no HELLO within {HELLO_S:g} s"
    if session.state in (State.CONNECTING, State.WELCOMING) and waited > rules.connect_s:
        return f"no answer from {rules.next_peer} within {rules.connect_s:g} s (timeouts.connect_s)"
    if session.state is not State.OPEN:
        return None
    stuck = [s for s in session.streams if s.sending and now - s.taken_s > rules.silence_s]
    if stuck:
        return f"{stuck[0].peer} took nothing for {rules.silence_s:g} s (timeouts.silence_s)"
    if previous.in_frame and reading and now - previous.received_s > rules.silence_s:
        return f"half a frame, then nothing for {rules.silence_s:g} s (timeouts.silence_s)"
    if contended and previous.holds_buffer and now_ns() - previous.header_ns > rules.silence_s * 1e9:
        return f"half a frame for {rules.silence_s:g} s, while others wait for its memory (timeouts.silence_s)"
    if following is not None and session.waiting:
        oldest_s = (now_ns() - session.waiting[0].sent_ns) / 1e9
        if session.waiting[0].sent_ns and oldest_s > rules.answer_s:
            return f"no answer from {following.peer} within {rules.answer_s:g} s (timeouts.step_s)"
    return None
