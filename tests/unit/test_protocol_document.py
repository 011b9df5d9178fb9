"""What docs/protocol.md says, held against the code: its bytes, tables, offsets, limits and documents."""

from __future__ import annotations

import json
import re
import struct
from enum import IntEnum
from pathlib import Path

import pytest

from msl.net import frame as frame_module
from msl.net.frame import (
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
)
from msl.net.handshake import read_hello
from msl.pipeline.fault import LONGEST_DETAIL, LONGEST_MESSAGE, read_fault

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


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
