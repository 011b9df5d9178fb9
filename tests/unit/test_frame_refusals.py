"""What a frame may not be: each refusal with its reason, on both sides, and before any memory is taken."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msl.errors import ProtocolError
from msl.net.connection import Connection
from msl.net.frame import (
    HEADER_SIZE,
    MAX_DOCUMENT,
    MAX_TENSORS,
    Codec,
    DType,
    Flag,
    Header,
    Kind,
    Layout,
    Role,
    TensorFlag,
    TensorSpec,
    encode,
    encode_document,
    parse_descriptors,
    parse_document,
    parse_header,
)

MAX_BODY = 1 << 20
TENSOR_KINDS = (Kind.FORWARD, Kind.BACKWARD, Kind.RESULT)


def header_bytes(**changes: int | bytes) -> bytes:
    """A good FORWARD header of one tensor of 4 bytes, with changes by field."""
    fields: dict[str, int | bytes] = {
        "magic": b"MSLF",
        "version": 2,
        "kind": Kind.FORWARD,
        "flags": Flag.TRAIN,
        "step": 5,
        "micro_batch": 2,
        "batch_samples": 64,
        "num_tensors": 1,
        "reserved": 0,
        "body_size": 128,
    }
    return struct.pack("<4sBBHIIIHHQ", *{**fields, **changes}.values())


def test_the_header_that_the_refusals_change_is_good() -> None:
    assert parse_header(header_bytes(), MAX_BODY) == Header(Kind.FORWARD, Flag.TRAIN, 5, 2, 64, 1, 128)


@pytest.mark.parametrize(
    ("changes", "wording"),
    [
        ({"magic": b"HTTP"}, "not an msl peer: a frame starts with b'MSLF', this one with b'HTTP'"),
        ({"version": 1}, "the peer speaks protocol version 1, this side version 2"),
        ({"version": 0}, "the peer speaks protocol version 0, this side version 2"),
        ({"kind": 0}, "unknown frame kind 0"),
        ({"kind": 10}, "unknown frame kind 10"),
        ({"flags": 8}, "unknown header flags 0x8 or reserved bytes 0x0"),
        ({"flags": 0x8001}, "unknown header flags 0x8001 or reserved bytes 0x0"),
        ({"reserved": 1}, "unknown header flags 0x1 or reserved bytes 0x1"),
        ({"flags": Flag.STEP}, "flags 0x2 do not fit a FORWARD frame"),
        ({"flags": Flag.TRACE | Flag.TRAIN}, "flags 0x5 do not fit a FORWARD frame"),
        ({"kind": Kind.BACKWARD}, "flags 0x1 do not fit a BACKWARD frame"),
        ({"kind": Kind.RESULT, "flags": 3}, "flags 0x3 do not fit a RESULT frame"),
        ({"num_tensors": 0}, "a FORWARD frame with 0 tensors"),
        ({"kind": Kind.BACKWARD, "flags": 0, "num_tensors": 0}, "a BACKWARD frame with 0 tensors"),
        ({"kind": Kind.RESULT, "flags": 0, "num_tensors": 0}, "a RESULT frame with 0 tensors"),
        *(
            ({"kind": kind, "flags": 0}, f"a {kind.name} frame with 1 tensors")
            for kind in Kind
            if kind not in TENSOR_KINDS
        ),
        ({"num_tensors": 65, "body_size": 65 * 64}, "a frame with 65 tensors; at most 64 are allowed"),
        ({"num_tensors": 65535}, "a frame with 65535 tensors; at most 64 are allowed"),
        (
            {"kind": Kind.HELLO, "flags": 0, "num_tensors": 0, "body_size": 65537},
            "a document of 65537 bytes; at most 65536 are allowed",
        ),
        (
            {"body_size": MAX_BODY + 1},
            "a frame of 1048577 bytes; this hop accepts at most 1048576 (max_frame_mb)",
        ),
        (
            {"body_size": 2**64 - 1},
            f"a frame of {2**64 - 1} bytes; this hop accepts at most 1048576 (max_frame_mb)",
        ),
        ({"body_size": 63}, "a frame of 63 bytes cannot hold 1 tensor descriptors"),
    ],
)
def test_a_header_that_is_not_allowed_is_refused_with_its_reason(changes: dict[str, int | bytes], wording: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_header(header_bytes(**changes), MAX_BODY)
    assert str(caught.value) == wording


def test_the_largest_allowed_sizes_are_taken() -> None:
    parse_header(header_bytes(num_tensors=64, body_size=MAX_BODY), MAX_BODY)
    parse_header(header_bytes(kind=Kind.ERROR, flags=0, num_tensors=0, body_size=MAX_DOCUMENT), MAX_BODY)


def descriptor_bytes(dims: tuple[int, ...] = (4, 2), **changes: int) -> bytes:
    """A good descriptor of 32 bytes of float32, with changes by field."""
    fields = {
        "dtype": DType.FLOAT32,
        "ndim": 2,
        "codec": Codec.NONE,
        "layout": Layout.ROW_MAJOR,
        "role": Role.SMASHED,
        "flags": TensorFlag.WANTS_GRAD,
        "reserved": 0,
        "num_bytes": 32,
    }
    tail = {"reserved_end": 0, "reserved_last": 0}
    values = {**fields, **tail, **changes}
    return struct.pack(
        "<6BHQ8I2Q",
        *[values[name] for name in fields],
        *dims,
        *[0] * (8 - len(dims)),
        *[values[name] for name in tail],
    )


def read_one(descriptor: bytes, body_size: int = 128) -> TensorSpec:
    header = Header(Kind.FORWARD, num_tensors=1, body_size=body_size)
    (spec,) = parse_descriptors(memoryview(descriptor), header)
    return spec


def test_the_descriptor_that_the_refusals_change_is_good() -> None:
    assert read_one(descriptor_bytes()) == TensorSpec(DType.FLOAT32, (4, 2), flags=TensorFlag.WANTS_GRAD)


@pytest.mark.parametrize(
    ("dims", "changes", "wording"),
    [
        ((4, 2), {"dtype": 0}, "tensor 0: unknown dtype code 0"),
        ((4, 2), {"dtype": 11}, "tensor 0: unknown dtype code 11"),
        ((1,) * 8, {"ndim": 9}, "tensor 0: 9 dimensions; at most 8 are allowed"),
        ((4, 2), {"ndim": 255}, "tensor 0: 255 dimensions; at most 8 are allowed"),
        ((4, 2), {"codec": 1}, "tensor 0: unknown codec 1"),
        ((4, 2), {"layout": 2}, "tensor 0: layout 2 does not fit 2 dimensions"),
        ((4, 2), {"layout": Layout.CHANNELS_LAST}, "tensor 0: layout 1 does not fit 2 dimensions"),
        ((4, 2), {"role": 4}, "tensor 0: unknown role 4"),
        ((4, 2), {"flags": 4}, "tensor 0: unknown flags 0x4, or unused fields that are not zero"),
        ((4, 2), {"reserved": 1}, "tensor 0: unknown flags 0x1, or unused fields that are not zero"),
        ((4, 2), {"reserved_end": 1}, "tensor 0: unknown flags 0x1, or unused fields that are not zero"),
        ((4, 2), {"reserved_last": 1 << 63}, "tensor 0: unknown flags 0x1, or unused fields that are not zero"),
        ((4, 2, 1), {}, "tensor 0: unknown flags 0x1, or unused fields that are not zero"),
        ((4, 2), {"num_bytes": 31}, "tensor 0: 31 bytes for shape (4, 2) of FLOAT32"),
        ((4, 3), {}, "tensor 0: 32 bytes for shape (4, 3) of FLOAT32"),
        ((4, 2), {"dtype": DType.FLOAT64}, "tensor 0: 32 bytes for shape (4, 2) of FLOAT64"),
        ((4, 2), {"flags": TensorFlag.ABSENT}, "tensor 0: 32 bytes for shape (4, 2) of FLOAT32"),
        # 2^64 elements of 8 bytes: their length is 0 in a number of 64 bits.
        (
            (2**31, 2**31, 4),
            {"ndim": 3, "dtype": DType.FLOAT64, "num_bytes": 0},
            f"tensor 0: 0 bytes for shape ({2**31}, {2**31}, 4) of FLOAT64",
        ),
        ((65536, 16384), {"num_bytes": 4 << 30}, "the tensors fill 4294967360 bytes, the header says 128"),
        ((0, 2), {"num_bytes": 0}, "the tensors fill 64 bytes, the header says 128"),
    ],
)
def test_a_descriptor_that_is_not_allowed_is_refused_with_its_reason(
    dims: tuple[int, ...], changes: dict[str, int], wording: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_one(descriptor_bytes(dims, **changes))
    assert str(caught.value) == wording


def test_the_refused_tensor_is_named_by_its_index() -> None:
    raw = memoryview(descriptor_bytes() + descriptor_bytes(dtype=77))
    with pytest.raises(ProtocolError, match=r"^tensor 1: unknown dtype code 77$"):
        parse_descriptors(raw, Header(Kind.FORWARD, num_tensors=2, body_size=2 * 128))


@pytest.mark.parametrize("body_size", [64, 127, 129, 192, 2**63])
def test_a_body_that_the_tensors_do_not_fill_exactly_is_refused(body_size: int) -> None:
    with pytest.raises(ProtocolError, match=rf"^the tensors fill 128 bytes, the header says {body_size}$"):
        read_one(descriptor_bytes(), body_size)


@pytest.mark.parametrize(
    ("raw", "wording"),
    [
        (b"\xff\xfe", "a control frame's body is not JSON in UTF-8"),
        (b"{", "a control frame's body is not JSON in UTF-8"),
        (b"{} {}", "a control frame's body is not JSON in UTF-8"),
        (b"\x00" * 10, "a control frame's body is not JSON in UTF-8"),
        (b"[" * MAX_DOCUMENT, "a control frame's body is not JSON in UTF-8"),
        (b'{"hop": ' + b"9" * 5000 + b"}", "a control frame's body is not JSON in UTF-8"),
        (b"[]", "a control frame's document is not a JSON object"),
        (b"3", "a control frame's document is not a JSON object"),
        (b"null", "a control frame's document is not a JSON object"),
    ],
    ids=["not UTF-8", "cut off", "two objects", "zeros", "deep", "endless number", "list", "number", "null"],
)
def test_a_document_that_is_no_json_object_is_refused(raw: bytes, wording: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_document(raw)
    assert str(caught.value) == wording


@given(st.binary(max_size=80))
def test_any_bytes_are_a_document_or_refused(raw: bytes) -> None:
    try:
        document = parse_document(raw)
    except ProtocolError:
        return
    assert isinstance(document, dict)


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_bytes_are_a_header_within_the_limits_or_refused(raw: bytes) -> None:
    for start in (b"", b"MSLF\x01", b"MSLF\x01\x03\x01\x00"):
        try:
            header = parse_header((start + raw)[:HEADER_SIZE], MAX_BODY)
        except ProtocolError:
            continue
        assert header.num_tensors <= MAX_TENSORS
        assert header.body_size <= MAX_BODY


def test_nothing_is_sent_that_the_peer_would_refuse() -> None:
    spec, payload = TensorSpec(DType.UINT8, (4,)), memoryview(bytes(4))
    with pytest.raises(ProtocolError, match=r"^a frame of 65 tensors; at most 64 can cross a cut$"):
        encode(Header(Kind.FORWARD), [spec] * 65, [payload] * 65)
    with pytest.raises(ProtocolError, match=r"^a payload of 3 bytes for TensorSpec"):
        encode(Header(Kind.FORWARD), [spec], [payload[:3]])
    with pytest.raises(ProtocolError, match=r"^a document of 65548 bytes; at most 65536 are allowed$"):
        encode_document(Header(Kind.ERROR), {"message": "x" * (MAX_DOCUMENT - 2)})


@pytest.mark.parametrize(
    "claim",
    [
        header_bytes(body_size=(4 << 30) + 64) + descriptor_bytes((65536, 16384), num_bytes=4 << 30),
        header_bytes(body_size=128) + descriptor_bytes((65536, 16384), num_bytes=4 << 30),
        header_bytes(num_tensors=2, body_size=MAX_BODY) + descriptor_bytes() + descriptor_bytes(),
        header_bytes(num_tensors=64, body_size=2**64 - 1),
        header_bytes(kind=Kind.HELLO, flags=0, num_tensors=0, body_size=2**40),
    ],
    ids=["4 GiB in header and tensor", "4 GiB in a small body", "a body not filled", "2^64 - 1", "a document of 1 TiB"],
)
def test_no_memory_is_taken_for_a_frame_that_is_refused(claim: bytes) -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, "a liar", MAX_BODY, silence_s=2.0)
    with theirs:
        theirs.sendall(claim)
        with pytest.raises(ProtocolError):
            connection.receive()
        assert connection.pool.allocated_bytes == 0
        connection.close()
