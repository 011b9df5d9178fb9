"""Frames as bytes: what is written is read back, what is not allowed is refused, and docs/protocol.md says the same."""

from __future__ import annotations

import json
import math
import re
import socket
import struct
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msl.errors import ProtocolError
from msl.net import frame as frame_module
from msl.net.connection import Connection
from msl.net.frame import (
    ALIGNMENT,
    DESCRIPTOR_SIZE,
    HEADER_SIZE,
    ITEM_SIZE,
    MAX_DIMS,
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
    pack_descriptor,
    padded,
    parse_descriptors,
    parse_document,
    parse_header,
)
from msl.net.handshake import read_hello
from msl.pipeline.fault import LONGEST_DETAIL, LONGEST_MESSAGE, read_fault

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
MAX_BODY = 1 << 20
TENSOR_KINDS = (Kind.FORWARD, Kind.BACKWARD, Kind.RESULT)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=MAX_DIMS)))
    while math.prod(shape) > 600:
        shape = shape[:-1]
    layout = draw(st.sampled_from(Layout)) if len(shape) == 4 else Layout.ROW_MAJOR
    flags = TensorFlag(draw(st.integers(0, 3)))
    return TensorSpec(draw(st.sampled_from(DType)), shape, draw(st.sampled_from(Role)), flags, layout)


@st.composite
def tensor_headers(draw: st.DrawFn) -> Header:
    kind = draw(st.sampled_from(TENSOR_KINDS))
    flags = draw(st.sampled_from([Flag(0), Flag.TRAIN, Flag.TRAIN | Flag.STEP])) if kind is Kind.FORWARD else Flag(0)
    return Header(kind, flags, draw(U32), draw(U32), draw(U32))


def payloads_for(specs: list[TensorSpec]) -> list[memoryview]:
    """Payloads of the right lengths, no two alike."""
    return [
        memoryview(bytes((index * 7 + offset) % 251 for offset in range(spec.num_bytes)))
        for index, spec in enumerate(specs)
    ]


@given(tensor_headers(), st.lists(tensor_specs(), min_size=1, max_size=MAX_TENSORS))
def test_a_tensor_frame_reads_back_as_it_was_written(header: Header, specs: list[TensorSpec]) -> None:
    payloads = payloads_for(specs)
    raw = b"".join(encode(header, specs, payloads))
    read = parse_header(raw[:HEADER_SIZE], MAX_BODY)
    assert (read.kind, read.flags, read.step, read.micro_batch, read.batch_samples) == (
        header.kind,
        header.flags,
        header.step,
        header.micro_batch,
        header.batch_samples,
    )
    assert HEADER_SIZE + read.body_size == len(raw)
    start = HEADER_SIZE + len(specs) * DESCRIPTOR_SIZE
    assert parse_descriptors(memoryview(raw)[HEADER_SIZE:start], read) == tuple(specs)
    for spec, payload in zip(specs, payloads, strict=True):
        assert (start - HEADER_SIZE) % ALIGNMENT == 0
        assert raw[start : start + spec.num_bytes] == payload
        end = start + padded(spec.num_bytes)
        assert not any(raw[start + spec.num_bytes : end])
        start = end
    assert start == len(raw)


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.none() | st.booleans()))
def test_a_document_reads_back_as_it_was_written(document: dict[str, Any]) -> None:
    raw = b"".join(encode_document(Header(Kind.ERROR, step=4), document))
    header = parse_header(raw[:HEADER_SIZE], MAX_BODY)
    assert (header.kind, header.step, header.num_tensors) == (Kind.ERROR, 4, 0)
    assert parse_document(raw[HEADER_SIZE:]) == document


def test_a_frame_without_document_is_a_header_alone() -> None:
    (raw,) = encode_document(Header(Kind.PING))
    assert len(raw) == HEADER_SIZE
    assert parse_document(b"") == {}


def test_payloads_are_sent_from_where_they_lie() -> None:
    payload = memoryview(bytearray(100))
    pieces = encode(Header(Kind.FORWARD), [TensorSpec(DType.UINT8, (100,))], [payload])
    assert any(piece is payload for piece in pieces)


@pytest.mark.parametrize(("num_bytes", "expected"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128)])
def test_padding_goes_to_the_next_multiple_of_64(num_bytes: int, expected: int) -> None:
    assert padded(num_bytes) == expected


def header_bytes(**changes: int | bytes) -> bytes:
    """A good FORWARD header of one tensor of 4 bytes, with changes by field."""
    fields: dict[str, int | bytes] = {
        "magic": b"MSLF",
        "version": 1,
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
        ({"version": 2}, "the peer speaks protocol version 2, this side version 1"),
        ({"version": 0}, "the peer speaks protocol version 0, this side version 1"),
        ({"kind": 0}, "unknown frame kind 0"),
        ({"kind": 10}, "unknown frame kind 10"),
        ({"flags": 4}, "unknown header flags 0x4 or reserved bytes 0x0"),
        ({"flags": 0x8001}, "unknown header flags 0x8001 or reserved bytes 0x0"),
        ({"reserved": 1}, "unknown header flags 0x1 or reserved bytes 0x1"),
        ({"flags": Flag.STEP}, "flags 0x2 do not fit a FORWARD frame"),
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
        ((4, 2), {"role": 3}, "tensor 0: unknown role 3"),
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


# From here on: what docs/protocol.md says.


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, language
    return str(found[0])


def codes(title: str) -> dict[int, str]:
    """The first two columns of the table that follows a line."""
    table = re.search(rf"^{title}:\n\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    assert table, title
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]
    return {int(row[0]): row[1] for row in rows}


def test_the_hexdump_in_the_document_is_a_real_frame() -> None:
    header = Header(Kind.FORWARD, Flag.TRAIN | Flag.STEP, step=17, micro_batch=3, batch_samples=64)
    specs = [
        TensorSpec(DType.FLOAT32, (2, 3), Role.SMASHED, TensorFlag.WANTS_GRAD),
        TensorSpec(DType.INT64, (2,), Role.TARGET),
    ]
    payloads = [struct.pack("<6f", 0.0, 0.5, 1.0, 1.5, 2.0, 2.5), struct.pack("<2q", 7, 1)]
    raw = b"".join(encode(header, specs, [memoryview(payload) for payload in payloads]))
    lines = block("hexdump").splitlines()
    assert [int(line[:8], 16) for line in lines] == list(range(0, len(raw), 16))
    assert b"".join(bytes.fromhex(line[8:]) for line in lines) == raw


@pytest.mark.parametrize(
    ("title", "enum"),
    [
        ("Kinds", Kind),
        ("Header flags", Flag),
        ("Element types", DType),
        ("Layouts", Layout),
        ("Codecs", Codec),
        ("Roles", Role),
        ("Tensor flags", TensorFlag),
    ],
)
def test_the_tables_in_the_document_hold_every_code(title: str, enum: type[IntEnum]) -> None:
    assert codes(title) == {member.value: member.name for member in enum}


def test_the_offsets_in_the_document_are_those_of_the_structures() -> None:
    for title, structure, size in (
        ("Header", frame_module._HEADER, HEADER_SIZE),
        ("Tensor descriptor", frame_module._DESCRIPTOR, DESCRIPTOR_SIZE),
    ):
        table = re.search(rf"^### {title}\n\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
        assert table
        rows = [[int(cell) for cell in line.split("|")[1:3]] for line in table[1].splitlines()[2:]]
        assert rows[0][0] == 0
        assert [offset + length for offset, length in rows] == [offset for offset, _ in rows[1:]] + [size]
        assert structure.size == size


def test_element_sizes_in_the_document_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| \d+ \| (\w+) \| (\d) \|$", DOCUMENT, re.MULTILINE)
    assert {name: int(size) for name, size in rows} == {dtype.name: size for dtype, size in ITEM_SIZE.items()}


def test_the_limits_in_the_document_are_those_of_the_code() -> None:
    for line in (
        f"| tensors of a frame | {MAX_TENSORS} |",
        f"| dimensions of a tensor | {MAX_DIMS} |",
        f"| document | {MAX_DOCUMENT} bytes |",
        f"| message of an ERROR | {LONGEST_MESSAGE} characters; a receiver cuts off the rest |",
        f"| detail of an ERROR | {LONGEST_DETAIL} characters; a receiver cuts off the rest |",
    ):
        assert line in DOCUMENT
    assert f"# The hop protocol, version {frame_module.VERSION}\n" in DOCUMENT


def test_the_documents_in_the_document_are_read() -> None:
    assert read_hello(json.loads(block("json hello"))).in_flight == 3
    assert [hop["name"] for hop in json.loads(block("json welcome"))["path"]] == ["nsf1", "sink"]
    assert str(read_fault(json.loads(block("json fault")))) == (
        "host n2, stage sink, step 17, micro-batch 1: the loss is nan"
    )
    assert set(json.loads(block("json refusal"))) == {"kind", "message"}


def test_a_descriptor_is_64_bytes_whatever_it_describes() -> None:
    for shape in ((), (1,) * 8, (0,), (2**32 - 1, 0)):
        assert len(pack_descriptor(TensorSpec(DType.BOOL, shape))) == DESCRIPTOR_SIZE
