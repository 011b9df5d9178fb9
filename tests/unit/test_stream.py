"""The stream of a service: frames from whatever pieces arrive, to a peer that takes what it likes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msl.errors import NetworkError, ProtocolError
from msl.net.buffers import BufferPool, Lease
from msl.net.connection import Connection, Frame
from msl.net.frame import Flag, Header, Kind, Role, TensorSpec, encode, encode_document
from msl.net.stream import Backlog, Stream
from msl.pipeline.wire import describe_all, tensors_in

LARGE = 2**26


class Pair:
    """A stream, and the bare socket at its other end."""

    def __init__(self, small: bool = False) -> None:
        self.far, near = socket.socketpair()
        if small:
            for sock in (self.far, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.pool = BufferPool()
        self.room = True
        self.backlog = Backlog()
        self.stream = Stream(near, "the peer", self.lend, LARGE, self.backlog)

    def lend(self, num_bytes: int) -> Lease | None:
        return self.pool.lease(num_bytes) if self.room else None

    def drain(self) -> list[Frame]:
        """All that has arrived."""
        frames = []
        while (frame := self.stream.read()) is not None:
            frames.append(frame)
        return frames


@contextmanager
def pair(small: bool = False) -> Iterator[Pair]:
    both = Pair(small)
    try:
        yield both
    finally:
        both.stream.close()
        both.far.close()
        assert both.backlog.num_bytes == 0


def raw(*tensors: torch.Tensor, number: int = 0) -> bytes:
    specs, payloads = describe_all(tensors)
    return b"".join(encode(Header(Kind.FORWARD, Flag(0), 0, number), specs, payloads))


def document(content: dict[str, int]) -> bytes:
    return b"".join(encode_document(Header(Kind.HELLO), content))


def equal(frame: Frame, *tensors: torch.Tensor) -> bool:
    found = tensors_in(frame, Role.SMASHED)
    return len(found) == len(tensors) and all(
        one is not None and torch.equal(one, other) for one, other in zip(found, tensors, strict=True)
    )


def test_a_frame_that_is_cut_at_any_byte_arrives_whole() -> None:
    tensors = torch.arange(24.0).view(2, 12), torch.arange(5)
    whole = raw(*tensors) + document({"a": 7})
    with pair() as both:
        for cut in range(1, len(whole)):
            both.far.sendall(whole[:cut])
            frames = both.drain()
            both.far.sendall(whole[cut:])
            frames += both.drain()
            assert [frame.kind for frame in frames] == [Kind.FORWARD, Kind.HELLO]
            assert equal(frames[0], *tensors)
            assert frames[1].document == {"a": 7}
            frames[0].release()
            assert not both.stream.in_frame
        assert both.pool.lent_bytes == 0
        assert both.stream.bytes_in == len(whole) * (len(whole) - 1)


def test_byte_by_byte() -> None:
    tensor = torch.rand(3, 7)
    with pair() as both:
        frames = []
        for byte in raw(tensor) * 2:
            both.far.sendall(bytes([byte]))
            frames += both.drain()
        assert len(frames) == 2
        assert all(equal(frame, tensor) for frame in frames)


def test_many_frames_of_one_piece_are_staged_and_all_read() -> None:
    with pair() as both:
        both.far.sendall(b"".join(raw(torch.full((1, 8), float(number)), number=number) for number in range(40)))
        first = both.stream.read()
        assert first is not None
        assert both.stream.staged
        frames = [first, *both.drain()]
        assert [frame.header.micro_batch for frame in frames] == list(range(40))
        assert all(equal(frame, torch.full((1, 8), float(number))) for number, frame in enumerate(frames))
        assert not both.stream.staged


def test_descriptors_that_change_are_read_anew() -> None:
    shapes = [(2, 3), (3, 2), (6,), (1, 6), (2, 3), (2, 3, 1)]
    with pair() as both:
        for shape in shapes:
            both.far.sendall(raw(torch.arange(6.0).view(shape)))
        for shape in shapes:
            frame = both.stream.read()
            assert frame is not None
            assert equal(frame, torch.arange(6.0).view(shape))


def test_empty_tensors_and_documents_need_no_buffer() -> None:
    with pair() as both:
        both.room = False
        both.far.sendall(raw(torch.empty(0, 8), torch.empty(3, 0)) + b"".join(encode_document(Header(Kind.PING))))
        tensors, ping = both.drain()
        assert equal(tensors, torch.empty(0, 8), torch.empty(3, 0))
        assert (ping.kind, ping.document) == (Kind.PING, {})


def test_large_payloads_through_small_sockets_both_ways() -> None:
    tensor = torch.rand(64, 4096)
    with pair(small=True) as both:
        peer = Connection(both.far.dup(), "the stream", LARGE, 10.0)
        specs, payloads = describe_all([tensor])
        sender = threading.Thread(target=peer.send, args=(Header(Kind.FORWARD), specs, payloads))
        sender.start()
        both.stream._sock.setblocking(False)
        frame = None
        while frame is None:
            frame = both.stream.read()
        sender.join()
        assert equal(frame, tensor)
        answers: list[Frame] = []
        receiver = threading.Thread(target=lambda: answers.append(peer.receive()))
        receiver.start()
        assert frame.lease is not None
        sent = both.stream.send(Header(Kind.RESULT), frame.specs, frame.payloads, [frame.lease])
        assert not sent
        assert both.stream.sending
        assert both.pool.lent_bytes
        while not both.stream.flush():
            pass
        receiver.join()
        assert equal(answers[0], tensor)
        assert both.pool.lent_bytes == 0
        assert both.backlog.num_bytes == 0
        assert both.stream.bytes_out == both.stream.bytes_in
        answers[0].release()
        peer.close()


def test_frames_queue_behind_one_that_is_not_taken_and_keep_their_order() -> None:
    with pair(small=True) as both:
        specs, payloads = describe_all([torch.rand(256, 256)])
        for number in range(3):
            assert not both.stream.send(Header(Kind.RESULT, Flag(0), 0, number), specs, payloads)
        assert not both.stream.send_document(Header(Kind.ERROR), {"message": "no"})
        assert both.stream.unsent_frames == 4
        peer = Connection(both.far.dup(), "the stream", LARGE, 10.0)
        found: list[Frame] = []
        receiver = threading.Thread(target=lambda: found.extend(peer.receive() for _ in range(4)))
        receiver.start()
        while not both.stream.flush():
            pass
        receiver.join()
        assert [(frame.kind, frame.header.micro_batch) for frame in found] == [
            *((Kind.RESULT, number) for number in range(3)),
            (Kind.ERROR, 0),
        ]
        peer.close()


def test_one_that_is_starved_goes_on_where_it_stopped_once_it_is_fed() -> None:
    tensor = torch.rand(5, 8)
    with pair() as both:
        both.room = False
        both.far.sendall(raw(tensor) * 2)
        for _ in range(3):
            assert both.stream.read() is None
            assert both.stream.starved
            assert both.stream.in_frame
        assert not both.stream.holds_buffer
        both.room = True
        assert [equal(frame, tensor) for frame in both.drain()] == [True, True]
        assert not both.stream.starved


def test_the_end_between_frames_is_told_apart_from_the_end_within_one() -> None:
    whole = raw(torch.rand(1, 8))
    for length in range(len(whole)):
        with pair() as both:
            both.far.sendall(whole[:length])
            both.far.shutdown(socket.SHUT_WR)
            error, reason = (NetworkError, "in the middle of a frame") if length else (EOFError, None)
            with pytest.raises(error, match=reason):
                read_on(both.stream)


def read_on(stream: Stream) -> None:
    for _ in range(5):
        stream.read()


def test_close_gives_back_what_was_received_and_what_was_to_be_sent() -> None:
    with pair(small=True) as both:
        leases = [both.pool.lease(2**20) for _ in range(3)]
        for lease in leases:
            spec, payload = describe_all([torch.frombuffer(lease.view, dtype=torch.uint8)])
            both.stream.send(Header(Kind.RESULT), spec, payload, [lease])
            del payload
        both.far.sendall(raw(torch.rand(100, 8))[:1000])
        assert both.stream.read() is None
        assert both.stream.holds_buffer
        assert both.backlog.num_bytes > 2 * 2**20
        both.stream.close()
        assert both.pool.lent_bytes == 0
        assert both.backlog.num_bytes == 0
        assert not both.stream.sending
        both.stream.close()


def test_a_frame_is_checked_before_memory_is_taken_for_it() -> None:
    def refuse(header: Header, specs: tuple[TensorSpec, ...]) -> None:
        raise ProtocolError(f"no {header.kind.name} of {specs[0].shape}")

    with pair() as both:
        both.stream.check = refuse
        both.far.sendall(raw(torch.rand(1, 8))[:96])
        with pytest.raises(ProtocolError, match=r"no FORWARD of \(1, 8\)"):
            both.stream.read()
        assert both.pool.allocated_bytes == 0


def test_a_peer_that_is_gone_is_a_network_error() -> None:
    with pair() as both:
        both.far.close()
        with pytest.raises(NetworkError, match="the connection to the peer broke"):
            both.stream.send_document(Header(Kind.PING))
        with pytest.raises(EOFError):
            both.stream.read()


def test_one_read_does_not_go_on_while_the_peer_sends_and_sends() -> None:
    """A peer as fast as this side would keep all others waiting for the length of a frame."""
    with pair(small=True) as both:
        whole = raw(torch.rand(256, 1024))
        both.far.setblocking(False)
        sent = reads = 0
        frame = None
        while frame is None:
            if sent < len(whole):
                sent += both.far.send(whole[sent : sent + 4096])
            frame = both.stream.read()
            reads += 1
        assert reads > 100


messages = st.lists(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=4),
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(messages=messages, cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=20), small=st.booleans())
def test_whatever_a_connection_sends_a_stream_reads_and_sends_back(
    messages: list[list[tuple[int, int]] | dict[str, int]], cuts: list[int], small: bool
) -> None:
    sending, through = socket.socketpair()
    peer = Connection(sending, "the stream", LARGE, 10.0)
    with pair(small) as both:
        back = Connection(both.far.dup(), "the stream", LARGE, 10.0)

        def send() -> None:
            for number, message in enumerate(messages):
                if isinstance(message, dict):
                    peer.send_document(Header(Kind.HELLO, micro_batch=number), message)
                else:
                    specs, payloads = describe_all([torch.full(shape, float(number)) for shape in message])
                    peer.send(Header(Kind.FORWARD, Flag(0), 0, number), specs, payloads)
            peer.finish()

        def cut() -> None:
            turn = 0
            while piece := through.recv(cuts[turn % len(cuts)]):
                both.far.sendall(piece)
                turn += 1

        returned: list[Frame] = []
        threads = [
            threading.Thread(target=target)
            for target in (send, cut, lambda: returned.extend(back.receive() for _ in messages))
        ]
        for thread in threads:
            thread.start()
        received = 0
        while received < len(messages) or both.stream.sending:
            frame = both.stream.read()
            if frame is not None:
                received += 1
                leases = [frame.lease] if frame.lease is not None else []
                if frame.specs:
                    both.stream.send(frame.header, frame.specs, frame.payloads, leases)
                else:
                    both.stream.send_document(frame.header, frame.document)
            both.stream.flush()
        for thread in threads:
            thread.join()
        assert both.pool.lent_bytes == 0
        for number, (message, frame) in enumerate(zip(messages, returned, strict=True)):
            assert frame.header.micro_batch == number
            if isinstance(message, dict):
                assert frame.document == message
            else:
                assert equal(frame, *(torch.full(shape, float(number)) for shape in message))
            frame.release()
        back.close()
    peer.close()
    through.close()
