"""What is said in the sessions of one hop: HELLO and WELCOME, requests in, answers back, and how a session ends.

Nothing here waits, and nothing here computes: the poller calls when a connection can be read or written, and the
computing thread hands over what is to go on. All calls are made under the service's lock.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import torch

from msl.errors import MslError, NetworkError, ProtocolError, StageError
from msl.net.buffers import BufferPool, Lease
from msl.net.connection import Frame
from msl.net.fabric import Fabric
from msl.net.frame import MAX_DOCUMENT, Flag, Header, Kind, TensorSpec
from msl.net.stream import Backlog, Stream
from msl.net.trace import encode_times, now_ns
from msl.pipeline.exchange import leases_of
from msl.pipeline.serving.counters import ServiceCounters
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.rules import HopRules, read_welcome
from msl.pipeline.serving.session import Session, State
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all

log = logging.getLogger(__name__)

HELLO_S = 5.0
"""A connection that has not said HELLO after this time is closed."""
LEAVING_S = 2.0
"""Time for a client to read the ERROR that ends its session, during which what it still sends is thrown away."""
_KEPT_BYTES = 64 * 2**20
"""Receive buffers that stay for later use."""
_FRAMES_A_TURN = 16
"""Frames that are read from one connection before others have their turn."""


class Watch(Protocol):
    """Waits for what happens on connections."""

    def add(self, session: Session, stream: Stream) -> None:
        """A connection is new."""
        ...

    def drop(self, stream: Stream) -> None:
        """A connection is about to be closed."""
        ...


class Dialogue:
    """The sessions of one hop.

    Args:
        rules: what the hop knows of itself and its neighbours.
        fabric: makes the connections onward; None at the last hop.
        turns: where requests wait to be computed.
        watch: told which connections there are.
    """

    def __init__(self, rules: HopRules, fabric: Fabric | None, turns: Turns, watch: Watch) -> None:
        self.rules = rules
        self.step = rules.step
        """Optimizer steps that the weights have behind them."""
        self.counters = ServiceCounters()
        self.sessions: dict[Session, None] = {}
        """All that are not closed, in the order of their arrival."""
        self.requests = BufferPool(_KEPT_BYTES)
        self.answers = BufferPool(_KEPT_BYTES)
        self.backlog = Backlog()
        self.starved: OrderedDict[Session, None] = OrderedDict()
        """Sessions whose next request waits for a buffer, in order."""
        self._first_in_line = False
        self._fabric = fabric
        self._turns = turns
        self._watch = watch

    def admit(self, sock: socket.socket, address: str) -> None:
        """A new connection."""
        self.counters.accepted += 1
        if len(self.sessions) >= self.rules.max_sessions:
            self.make_room()
        try:
            previous = Stream(sock, f"the peer at {address}", self.lend, MAX_DOCUMENT, self.backlog)
            previous.check = _check_greeting
            session = Session(previous)
            self._watch.add(session, previous)
        except OSError as error:
            log.warning("hop %d: a connection of %s failed: %s", self.rules.hop, address, error)
            self.counters.refused["gone"] += 1
            sock.close()
            return
        self.sessions[session] = None
        if len(self.sessions) > self.rules.max_sessions:
            self.refuse(session, NetworkError(f"the service has its most connections ({self.rules.max_sessions})"))

    def make_room(self) -> None:
        """Close who has been silent longest, or is leaving: a crowd of strangers must not keep clients out."""
        for session in self.sessions:
            if session.state in (State.GREETING, State.LEAVING):
                self.counters.refused["silent"] += 1
                self.close(session)
                return

    def lend(self, num_bytes: int) -> Lease | None:
        """A buffer for a request, if there is room for it and nobody else was told to wait before."""
        lent = self.requests.lent_bytes
        must_wait = bool(self.starved) and not self._first_in_line
        if must_wait or (lent and lent + num_bytes > self.rules.memory_bytes):
            return None
        self._first_in_line = False
        return self.requests.lease(num_bytes)

    def wants_more(self, session: Session) -> bool:
        """Whether the session's client is to be read from. An answer that it does not take fills its window too."""
        if session.state is State.OPEN:
            under_way = session.unanswered + session.previous.unsent_frames
            return not session.ended and under_way < self.rules.in_flight and session not in self.starved
        return session.state in (State.GREETING, State.LEAVING) and not session.ended

    def readable(self, session: Session, stream: Stream, hung_up: bool = False) -> None:
        """Something has arrived on one of a session's connections, or it has ended: for good if it is hung up."""
        if session.state is State.CONNECTING and stream is session.following:
            self.writable(session, stream)  # it has failed
        elif stream is not session.previous:
            self._guarded(session, stream, self._read_following)
        elif self.wants_more(session):
            self._guarded(session, stream, self._read_previous)
        elif hung_up:
            self._guarded(session, stream, self._lost)
        # Else it was read from since this was found out, and its window is full now.

    def writable(self, session: Session, stream: Stream) -> None:
        """One of a session's connections takes more, or has been made."""

        def write(of: Session) -> None:
            if of.state is State.CONNECTING and stream is of.following:
                stream.connected()
                of.become(State.WELCOMING)
                stream.send_document(Header(Kind.HELLO), self.rules.hello_onward())
            elif stream.flush():
                self._all_sent(of)

        self._guarded(session, stream, write)

    def deliver(self, request: Request, outputs: list[torch.Tensor] | MslError) -> None:
        """A request was computed: send what came out onward, or back from the sink."""
        session = request.session
        if session.state is not State.OPEN:
            request.frame.release()
            return
        if isinstance(outputs, MslError):
            request.frame.release()
            self.refuse(session, outputs)
            return
        stream = session.following or session.previous
        self._guarded(session, stream, lambda of: self._send_on(of, request, outputs))
        if session.state is not State.OPEN:
            request.frame.release()

    def feed_starved(self) -> list[Session]:
        """Read on from those whose requests waited for buffers, as far as there are some now; who that was."""
        fed = []
        while self.starved:
            session, _ = self.starved.popitem(last=False)
            self._first_in_line = True
            self._guarded(session, session.previous, self._read_previous)
            unfed, self._first_in_line = self._first_in_line and session in self.starved, False
            if unfed:
                self.starved.move_to_end(session, last=False)
                break
            fed.append(session)
        return fed

    def check_deadlines(self) -> None:
        """End the sessions that have waited too long."""
        now = time.monotonic()
        for session in list(self.sessions):
            if reason := self._overdue(session, now):
                self.refuse(session, NetworkError(reason))
            elif session.state is State.LEAVING and now - session.since_s > LEAVING_S:
                self.close(session)

    def refuse(self, session: Session, error: MslError) -> None:
        """End a session with an error, which its client is told if it can be."""
        document = {
            "kind": type(error).__name__,
            "stage": self.rules.name,
            "host": self.rules.host,
            "step": self.step,
            "micro_batch": -1,
            "message": str(error)[:1000],
        }
        self._leave(session, document)

    def close(self, session: Session) -> None:
        """End a session at once."""
        if session.state is State.CLOSED:
            return
        session.become(State.CLOSED)
        self.sessions.pop(session, None)
        self._abandon(session)
        for stream in session.streams:
            self._end(stream)

    def _leave(self, session: Session, document: dict[str, object]) -> None:
        if session.state in (State.LEAVING, State.CLOSED):
            return
        self.counters.refused[str(document.get("kind"))] += 1
        log.info("hop %d: a session of %s ends: %s", self.rules.hop, session.previous.peer, document.get("message"))
        self._abandon(session)
        session.become(State.LEAVING)
        if session.following is not None:
            self._end(session.following)
            session.following = None
        try:
            if session.previous.send_document(Header(Kind.ERROR), document):
                self._all_sent(session)
        except NetworkError:
            self.close(session)

    def _abandon(self, session: Session) -> None:
        """Forget what is under way."""
        self.starved.pop(session, None)
        for request in self._turns.remove(session):
            request.frame.release()
        for request in session.waiting:
            request.frame.release()
        session.waiting.clear()

    def _end(self, stream: Stream) -> None:
        self._watch.drop(stream)
        stream.close()

    def _guarded(self, session: Session, stream: Stream, call: Callable[[Session], None]) -> None:
        """Do something with one connection of a session; what goes wrong ends this session and no other."""
        if session.state is State.CLOSED:
            return
        try:
            call(session)
        except MslError as error:
            if stream is session.previous and isinstance(error, NetworkError) and not isinstance(error, ProtocolError):
                self._gone(session)
            else:
                self.refuse(session, error)
        except Exception as error:
            log.exception("hop %d: a session failed", self.rules.hop)
            self.refuse(session, StageError(f"{type(error).__name__}: {error}"))

    def _gone(self, session: Session) -> None:
        """The client is gone: there is nobody to be told."""
        if session.state not in (State.LEAVING, State.CLOSED):
            self.counters.refused["gone"] += 1
        self.close(session)

    def _lost(self, session: Session) -> None:
        raise NetworkError(f"{session.previous.peer} closed the connection")

    # -- what the previous hop says

    def _read_previous(self, session: Session) -> None:
        if session.state is State.LEAVING:
            self._discard(session)
            return
        session.unread = True
        for _ in range(_FRAMES_A_TURN):
            if not self.wants_more(session):
                return
            try:
                frame = session.previous.read()
            except EOFError:
                session.ended, session.unread = True, False
                self._end_if_done(session)
                return
            if frame is None:
                session.unread = False
                if session.previous.starved:
                    self.starved[session] = None
                return
            if frame.kind is not Kind.PING:
                self._heard(session, frame)
            if not session.previous.staged:
                session.unread = False
                return

    def _heard(self, session: Session, frame: Frame) -> None:
        try:
            if session.state is State.GREETING:
                self._greet(session, frame)
            else:
                self._take_in(session, frame)
        except BaseException:
            frame.release()
            raise

    def _discard(self, session: Session) -> None:
        """Throw away what a session's client still sends."""
        session.unread = False
        for _ in range(_FRAMES_A_TURN):
            try:
                if session.previous.socket.recv(65536):
                    continue
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close(session)
                return
            session.ended = True
            if not session.previous.sending:
                self.close(session)
            return

    def _greet(self, session: Session, frame: Frame) -> None:
        if frame.kind is not Kind.HELLO:
            raise ProtocolError(f"a connection begins with HELLO, not {frame.kind.name}")
        self.rules.check_hello(frame.document)
        if self.rules.next_peer is None or self._fabric is None:
            self._open(session, [])
            return
        try:
            sock = self._fabric.dial(session.previous.socket)
        except (OSError, MslError) as error:
            self.refuse(session, NetworkError(f"{self.rules.next_peer} cannot be reached: {error}"))
            return
        session.following = Stream(sock, self.rules.next_peer, self.answers.lease, MAX_DOCUMENT, self.backlog)
        session.following.check = _check_answer
        session.become(State.CONNECTING)
        self._watch.add(session, session.following)

    def _open(self, session: Session, path: list[dict[str, object]]) -> None:
        session.become(State.OPEN)
        session.previous.max_body = self.rules.max_body
        session.previous.check = self._check_request
        if session.following is not None:
            session.following.max_body = self.rules.max_body
        session.previous.send_document(Header(Kind.WELCOME), self.rules.welcome(path, self.step))

    def _take_in(self, session: Session, frame: Frame) -> None:
        if frame.kind is not Kind.FORWARD:
            self.rules.check_request(frame)  # tells what is wrong with it; a FORWARD was looked at before it was read
        samples = self.rules.samples_of(frame)
        session.unanswered += 1
        self.counters.requests += 1
        self.counters.samples += samples
        self._turns.add(Request(session, frame, samples, session.previous.header_ns))

    def _check_request(self, header: Header, specs: tuple[TensorSpec, ...]) -> None:
        self.rules.check_request(Frame(header, specs))

    def _all_sent(self, session: Session) -> None:
        if session.state is not State.LEAVING:
            self._end_if_done(session)
        elif session.ended:
            self.close(session)
        else:
            session.previous.finish()

    def _end_if_done(self, session: Session) -> None:
        if session.ended and not session.unanswered and not session.previous.sending:
            self.close(session)

    # -- what the next hop says

    def _read_following(self, session: Session) -> None:
        following = session.following
        while following is not None and session.state in (State.WELCOMING, State.OPEN):
            try:
                frame = following.read()
            except EOFError:
                raise NetworkError(f"{following.peer} closed the connection") from None
            if frame is None:
                return
            if frame.kind is Kind.PING:
                continue
            try:
                self._told(session, frame, following)
            except BaseException:
                frame.release()
                raise
            if not following.staged:
                return

    def _told(self, session: Session, frame: Frame, following: Stream) -> None:
        if session.state is State.WELCOMING:
            self._open(session, read_welcome(frame, following.peer))
        elif frame.kind is Kind.ERROR:
            self._leave(session, dict(frame.document))
        else:
            self._answer(session, frame, following.header_ns)

    def _answer(self, session: Session, frame: Frame, header_ns: int) -> None:
        """Pass an answer on, unchanged but for the times."""
        request = session.waiting.popleft() if session.waiting else None
        asked = request.frame.header if request is not None else None
        got = frame.header
        if request is None or asked is None or frame.kind is not Kind.RESULT or got.micro_batch != asked.micro_batch:
            raise ProtocolError(f"a {frame.kind.name} of request {got.micro_batch} that was not due")
        specs, payloads = list(frame.specs), list(frame.payloads)
        self._send_back(session, request, got.step, specs, payloads, leases_of(frame), header_ns)

    # -- what this hop says

    def _send_on(self, session: Session, request: Request, outputs: list[torch.Tensor]) -> None:
        specs, payloads = describe_all(outputs)
        request.encoded_ns = now_ns()
        leases = leases_of(request.frame)  # an output may be a view of an input
        if session.following is None:
            request.sent_ns = request.encoded_ns
            self._send_back(session, request, self.step, specs, payloads, leases, request.encoded_ns)
            return
        asked = request.frame.header
        flags = asked.flags & Flag.TRACE
        header = Header(Kind.FORWARD, flags, asked.step, asked.micro_batch, request.samples)
        session.waiting.append(request)
        session.following.send(header, specs, payloads, leases)
        request.sent_ns = now_ns()

    def _send_back(
        self,
        session: Session,
        request: Request,
        step: int,
        specs: list[TensorSpec],
        payloads: list[memoryview],
        leases: list[Lease],
        answer_ns: int,
    ) -> None:
        answered_ns = now_ns()
        if request.traced:
            spec, payload = encode_times(request.times(self.rules.hop, answer_ns, answered_ns))
            specs.append(spec)
            payloads.append(payload)
        session.unanswered -= 1
        self.counters.answered += 1
        self.counters.latency.add(answered_ns - request.header_ns)
        number = request.frame.header.micro_batch
        try:
            session.previous.send(Header(Kind.RESULT, Flag(0), step, number), specs, payloads, leases)
        except ProtocolError:
            raise
        except NetworkError:
            self._gone(session)
        self._end_if_done(session)

    def _overdue(self, session: Session, now: float) -> str | None:
        """Why a session has waited too long, if it has."""
        rules, waited = self.rules, now - session.since_s
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
        if previous.in_frame and self.wants_more(session) and now - previous.received_s > rules.silence_s:
            return f"half a frame, then nothing for {rules.silence_s:g} s (timeouts.silence_s)"
        if self.starved and previous.holds_buffer and now_ns() - previous.header_ns > rules.silence_s * 1e9:
            return f"half a frame for {rules.silence_s:g} s, while others wait for its memory (timeouts.silence_s)"
        if following is not None and session.waiting:
            oldest_s = (now_ns() - session.waiting[0].sent_ns) / 1e9
            if session.waiting[0].sent_ns and oldest_s > rules.answer_s:
                return f"no answer from {following.peer} within {rules.answer_s:g} s (timeouts.step_s)"
        return None


def _check_greeting(header: Header, _specs: tuple[TensorSpec, ...]) -> None:
    raise ProtocolError(f"a connection begins with HELLO, not {header.kind.name}")


def _check_answer(header: Header, _specs: tuple[TensorSpec, ...]) -> None:
    if header.kind is not Kind.RESULT:
        raise ProtocolError(f"a {header.kind.name} frame; the next hop answers with RESULT")
