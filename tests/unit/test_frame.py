"""Frames as bytes: what is written is read back, each part at its place and of its length."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msl.net.frame import (
    ALIGNMENT,
    DESCRIPTOR_SIZE,
    HEADER_SIZE,
    MAX_DIMS,
    MAX_TENSORS,
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


def test_a_descriptor_is_64_bytes_whatever_it_describes() -> None:
    for shape in ((), (1,) * 8, (0,), (2**32 - 1, 0)):
        assert len(pack_descriptor(TensorSpec(DType.BOOL, shape))) == DESCRIPTOR_SIZE
