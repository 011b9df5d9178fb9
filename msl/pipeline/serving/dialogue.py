"""What is said in the sessions of one hop: HELLO and WELCOME, requests in, answers back, and how a session ends.

Nothing here waits, and nothing here computes: the poller calls when a connection can be read or written, and the
computing thread hands over what is to go on. All calls are made under the service's lock.
"""

from __future__ import annotations

import logging

import torch

from msl.errors import MslError, NetworkError, ProtocolError
from msl.net.buffers import Lease
from msl.net.connection import Frame
from msl.net.fabric import Fabric
from msl.net.frame import MAX_DOCUMENT, Flag, Header, Kind, TensorSpec
from msl.net.stream import Stream
from msl.net.trace import encode_times, now_ns
from msl.pipeline.exchange import leases_of
from msl.pipeline.serving.request import Request
from msl.pipeline.serving.rules import HopRules, read_welcome
from msl.pipeline.serving.session import Session, State
from msl.pipeline.serving.sessions import Sessions, Watch
from msl.pipeline.serving.turns import Turns
from msl.pipeline.wire import describe_all

log = logging.getLogger(__name__)

_FRAMES_A_TURN = 16
"""Frames that are read from one connection before others have their turn."""


class Dialogue(Sessions):
    """What is said in the sessions of one hop.

    Args:
        rules: what the hop knows of itself and its neighbours.
        fabric: makes the connections onward; None at the last hop.
        turns: where requests wait to be computed.
        watch: told which connections there are.
    """

    def __init__(self, rules: HopRules, fabric: Fabric | None, turns: Turns, watch: Watch) -> None:
        super().__init__(rules, turns, watch)
        self._fabric = fabric

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


def _check_answer(header: Header, _specs: tuple[TensorSpec, ...]) -> None:
    if header.kind is not Kind.RESULT:
        raise ProtocolError(f"a {header.kind.name} frame; the next hop answers with RESULT")
