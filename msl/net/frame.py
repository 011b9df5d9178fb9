"""The frame of the hop protocol, as bytes and back; pure, and written down in docs/protocol.md.

A frame is a fixed header, then a body: descriptors and payloads of tensors, or a small JSON document. Every
length is bounded and checked here before anyone takes memory for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from msl.errors import ProtocolError

MAGIC = b"MSLF"
VERSION = 2
ALIGNMENT = 64
"""Payloads start at multiples of this many bytes: some kernels round differently on other alignments."""
MAX_TENSORS = 64
MAX_DIMS = 8
MAX_DOCUMENT = 64 * 1024

_HEADER = struct.Struct("<4sBBHIIIHHQ")
_DESCRIPTOR = struct.Struct("<6BHQ8I2Q")
HEADER_SIZE = _HEADER.size
DESCRIPTOR_SIZE = _DESCRIPTOR.size
assert HEADER_SIZE == 32
assert DESCRIPTOR_SIZE == ALIGNMENT


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    WELCOME = 2
    FORWARD = 3
    BACKWARD = 4
    RESULT = 5
    EPOCH = 6
    END = 7
    ERROR = 8
    PING = 9


_TENSOR_KINDS = (Kind.FORWARD, Kind.BACKWARD, Kind.RESULT)
"""Kinds that carry tensors, one at least; the others carry a document or nothing."""


class Flag(IntFlag):
    """Bits of a FORWARD frame's header."""

    TRAIN = 1
    """Train mode: keep the graph; a BACKWARD is expected in answer."""
    STEP = 2
    """Last micro-batch of its step: after its backward pass the stage's optimizer steps."""
    TRACE = 4
    """Without TRAIN: each hop adds a TRACE tensor to the RESULT, with the times of what it did."""


class DType(IntEnum):
    """Element types, with the code that stands on the wire."""

    FLOAT32 = 1
    FLOAT64 = 2
    FLOAT16 = 3
    BFLOAT16 = 4
    INT8 = 5
    UINT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    BOOL = 10


ITEM_SIZE: Mapping[DType, int] = {
    DType.FLOAT32: 4,
    DType.FLOAT64: 8,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.BOOL: 1,
}


class Codec(IntEnum):
    """How a payload encodes its elements."""

    NONE = 0
    """Little-endian elements as they lie in memory."""


class Layout(IntEnum):
    """The order of a payload's elements."""

    ROW_MAJOR = 0
    CHANNELS_LAST = 1
    """Four dimensions N, C, H, W, stored in the order N, H, W, C."""


class Role(IntEnum):
    """Whom a tensor is for."""

    SMASHED = 0
    """The next stage."""
    TARGET = 1
    """The sink; stages between pass it on unchanged."""
    METRIC = 2
    """The source; stages between pass it on unchanged."""
    TRACE = 3
    """The client that asked for it; hops between pass it on unchanged, and append their own."""


class TensorFlag(IntFlag):
    """Bits of a tensor descriptor."""

    WANTS_GRAD = 1
    """FORWARD: a gradient for this tensor is expected in the BACKWARD."""
    ABSENT = 2
    """BACKWARD: there is no gradient for this tensor; it has no payload."""


# Plain numbers: the complement of an IntFlag is no more than the flags that it lacks.
_KNOWN_FLAGS = sum(Flag)
_KNOWN_TENSOR_FLAGS = sum(TensorFlag)
_FORWARD_FLAGS = (Flag.TRAIN, Flag.TRAIN | Flag.STEP, Flag.TRACE)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Describes one tensor of a frame; its payload is `num_bytes` long."""

    dtype: DType
    shape: tuple[int, ...]
    role: Role = Role.SMASHED
    flags: TensorFlag = TensorFlag(0)
    layout: Layout = Layout.ROW_MAJOR
    codec: Codec = Codec.NONE

    @property
    def num_bytes(self) -> int:
        """Length of the payload, without padding."""
        return 0 if TensorFlag.ABSENT in self.flags else math.prod(self.shape) * ITEM_SIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed header; `body_size` counts all bytes that follow it."""

    kind: Kind
    flags: Flag = Flag(0)
    step: int = 0
    micro_batch: int = 0
    batch_samples: int = 0
    num_tensors: int = 0
    body_size: int = 0

    def pack(self) -> bytes:
        """The header's 32 bytes."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.flags,
            self.step,
            self.micro_batch,
            self.batch_samples,
            self.num_tensors,
            0,
            self.body_size,
        )


def padded(num_bytes: int) -> int:
    """`num_bytes` rounded up to the payload alignment."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def parse_header(raw: bytes | memoryview, max_body: int) -> Header:
    """Read and check a header.

    Args:
        raw: exactly `HEADER_SIZE` bytes.
        max_body: largest body that this hop accepts, in bytes.

    Raises:
        ProtocolError: wrong magic, version, kind or flags, a body that does not fit the kind, or one larger
            than allowed.
    """
    magic, version, kind, flags, step, micro_batch, batch_samples, num_tensors, reserved, size = _HEADER.unpack(raw)
    if magic != MAGIC:
        raise ProtocolError(f"not an msl peer: a frame starts with {MAGIC!r}, this one with {bytes(magic)!r}")
    if version != VERSION:
        raise ProtocolError(f"the peer speaks protocol version {version}, this side version {VERSION}")
    if kind not in Kind._value2member_map_:
        raise ProtocolError(f"unknown frame kind {kind}")
    if flags & ~_KNOWN_FLAGS or reserved:
        raise ProtocolError(f"unknown header flags {flags:#x} or reserved bytes {reserved:#x}")
    if flags and (kind != Kind.FORWARD or flags not in _FORWARD_FLAGS):
        raise ProtocolError(f"flags {flags:#x} do not fit a {Kind(kind).name} frame")
    if (num_tensors > 0) != (kind in _TENSOR_KINDS):
        raise ProtocolError(f"a {Kind(kind).name} frame with {num_tensors} tensors")
    if num_tensors > MAX_TENSORS:
        raise ProtocolError(f"a frame with {num_tensors} tensors; at most {MAX_TENSORS} are allowed")
    if num_tensors == 0 and size > MAX_DOCUMENT:
        raise ProtocolError(f"a document of {size} bytes; at most {MAX_DOCUMENT} are allowed")
    if size > max_body:
        raise ProtocolError(f"a frame of {size} bytes; this hop accepts at most {max_body} (max_frame_mb)")
    if size < num_tensors * DESCRIPTOR_SIZE:
        raise ProtocolError(f"a frame of {size} bytes cannot hold {num_tensors} tensor descriptors")
    return Header(Kind(kind), Flag(flags), step, micro_batch, batch_samples, num_tensors, size)


def pack_descriptor(spec: TensorSpec) -> bytes:
    """The 64 bytes that describe one tensor."""
    dims = (*spec.shape, *([0] * (MAX_DIMS - len(spec.shape))))
    return _DESCRIPTOR.pack(
        spec.dtype, len(spec.shape), spec.codec, spec.layout, spec.role, spec.flags, 0, spec.num_bytes, *dims, 0, 0
    )


def parse_descriptors(raw: memoryview, header: Header) -> tuple[TensorSpec, ...]:
    """Read and check a frame's tensor descriptors.

    Args:
        raw: `header.num_tensors * DESCRIPTOR_SIZE` bytes.

    Raises:
        ProtocolError: unknown codes, a length that does not follow from dtype and shape, or a sum of
            lengths that does not fill the body exactly.
    """
    specs = []
    total = header.num_tensors * DESCRIPTOR_SIZE
    for index, fields in enumerate(_DESCRIPTOR.iter_unpack(raw)):
        spec = _spec_of(index, fields)
        total += padded(spec.num_bytes)
        specs.append(spec)
    if total != header.body_size:
        raise ProtocolError(f"the tensors fill {total} bytes, the header says {header.body_size}")
    return tuple(specs)


class DescriptorReader:
    """Reads the descriptors of one stream's frames; those of the frame before, as most are, are not parsed again."""

    def __init__(self) -> None:
        self._specs: tuple[TensorSpec, ...] = ()
        self._read_from = (b"", 0)

    def read(self, raw: bytes, header: Header) -> tuple[TensorSpec, ...]:
        """As `parse_descriptors`."""
        if (raw, header.body_size) != self._read_from:
            self._specs = parse_descriptors(memoryview(raw), header)
            self._read_from = raw, header.body_size
        return self._specs


def payloads_in(body: memoryview, specs: Sequence[TensorSpec]) -> tuple[memoryview, ...]:
    """The payloads of a frame, as views of what follows its descriptors."""
    payloads = []
    offset = 0
    for spec in specs:
        payloads.append(body[offset : offset + spec.num_bytes])
        offset += padded(spec.num_bytes)
    return tuple(payloads)


def _spec_of(index: int, fields: tuple[int, ...]) -> TensorSpec:
    dtype, ndim, codec, layout, role, flags, reserved, num_bytes, *rest = fields
    dims, reserved_end = rest[:MAX_DIMS], rest[MAX_DIMS:]
    if dtype not in DType._value2member_map_:
        raise ProtocolError(f"tensor {index}: unknown dtype code {dtype}")
    if ndim > MAX_DIMS:
        raise ProtocolError(f"tensor {index}: {ndim} dimensions; at most {MAX_DIMS} are allowed")
    if codec not in Codec._value2member_map_:
        raise ProtocolError(f"tensor {index}: unknown codec {codec}")
    if layout not in Layout._value2member_map_ or (layout == Layout.CHANNELS_LAST and ndim != 4):
        raise ProtocolError(f"tensor {index}: layout {layout} does not fit {ndim} dimensions")
    if role not in Role._value2member_map_:
        raise ProtocolError(f"tensor {index}: unknown role {role}")
    if flags & ~_KNOWN_TENSOR_FLAGS or reserved or any(dims[ndim:] + reserved_end):
        raise ProtocolError(f"tensor {index}: unknown flags {flags:#x}, or unused fields that are not zero")
    spec = TensorSpec(DType(dtype), tuple(dims[:ndim]), Role(role), TensorFlag(flags), Layout(layout), Codec(codec))
    if spec.num_bytes != num_bytes:
        raise ProtocolError(f"tensor {index}: {num_bytes} bytes for shape {spec.shape} of {spec.dtype.name}")
    return spec


def encode(header: Header, specs: Sequence[TensorSpec], payloads: Sequence[memoryview]) -> list[bytes | memoryview]:
    """The pieces of a tensor frame, in order, for a scatter-gather send; payloads are not copied.

    Args:
        header: kind, flags and position; `num_tensors` and `body_size` are filled in here.
        specs: one per tensor, at most 64.
        payloads: one per spec, each a contiguous view of `spec.num_bytes` bytes.
    """
    if len(specs) > MAX_TENSORS:
        raise ProtocolError(f"a frame of {len(specs)} tensors; at most {MAX_TENSORS} can cross a cut")
    body = len(specs) * DESCRIPTOR_SIZE + sum(padded(spec.num_bytes) for spec in specs)
    full = Header(header.kind, header.flags, header.step, header.micro_batch, header.batch_samples, len(specs), body)
    pieces: list[bytes | memoryview] = [full.pack() + b"".join(map(pack_descriptor, specs))]
    for spec, payload in zip(specs, payloads, strict=True):
        if payload.nbytes != spec.num_bytes:
            raise ProtocolError(f"a payload of {payload.nbytes} bytes for {spec}")
        if payload.nbytes:
            pieces.append(payload)
            pieces.append(bytes(padded(payload.nbytes) - payload.nbytes))
    return [piece for piece in pieces if len(piece)]


def unsent(pieces: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of `pieces` after their first `sent` bytes."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []


def encode_document(header: Header, document: Mapping[str, Any] | None = None) -> list[bytes | memoryview]:
    """The bytes of a frame that carries a JSON document, or nothing."""
    body = b"" if document is None else json.dumps(document, separators=(",", ":")).encode()
    if len(body) > MAX_DOCUMENT:
        raise ProtocolError(f"a document of {len(body)} bytes; at most {MAX_DOCUMENT} are allowed")
    full = Header(header.kind, header.flags, header.step, header.micro_batch, header.batch_samples, 0, len(body))
    return [full.pack() + body]


def parse_document(raw: bytes | memoryview) -> dict[str, Any]:
    """Read the JSON object of a control frame; an empty body is an empty object.

    Raises:
        ProtocolError: not UTF-8, not JSON, or not an object.
    """
    if not len(raw):
        return {}
    try:
        document = json.loads(bytes(raw).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise ProtocolError("a control frame's body is not JSON in UTF-8") from error
    if not isinstance(document, dict):
        raise ProtocolError("a control frame's document is not a JSON object")
    return document
