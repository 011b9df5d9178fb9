"""What docs/protocol.md says, held against the code: its bytes, tables, offsets, limits and documents."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import pytest

from msl.net import frame as frame_module
from msl.net.connection import Frame
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
    parse_descriptors,
    parse_header,
)
from msl.net.handshake import read_hello
from msl.net.trace import FIELDS
from msl.pipeline.fault import LONGEST_DETAIL, LONGEST_MESSAGE, read_fault
from msl.pipeline.serving.deadlines import HELLO_S
from msl.pipeline.serving.rules import HopRules
from msl.pipeline.serving.sessions import LEAVING_S
from msl.plan import InputSpec

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


RULES = HopRules(
    service="digits",
    hop=1,
    name="nsf1",
    host="n1",
    next_peer="nsf2",
    job="6f1d0c52a9b84e0f9a3c7d5e2b186f40",
    schema="a17cc592f55cd995883e4980d88d318585bfecf19c179f76cef7389f891ca17c",
    inputs=(InputSpec((1, 32, 32), "float32"),),
    step=1200,
)


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, language
    return str(found[0])


def dumped(language: str) -> bytes:
    """The bytes of a hexdump whose lines stand at the offsets that they say."""
    lines = block(language).splitlines()
    raw = b"".join(bytes.fromhex(line[8:]) for line in lines)
    assert [int(line[:8], 16) for line in lines] == list(range(0, len(raw), 16))
    return raw


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
    assert dumped("hexdump") == raw


def test_the_request_in_the_document_is_one_that_a_service_takes() -> None:
    payload = struct.pack("<2f", 0.5, -1.0)
    specs = [TensorSpec(DType.FLOAT32, (1, 2))]
    raw = b"".join(encode(Header(Kind.FORWARD, micro_batch=5), specs, [memoryview(payload)]))
    assert dumped("hexdump-request") == raw
    header = parse_header(raw[:HEADER_SIZE], MAX_DOCUMENT)
    frame = Frame(header, parse_descriptors(memoryview(raw)[HEADER_SIZE : HEADER_SIZE + DESCRIPTOR_SIZE], header))
    rules = replace(RULES, inputs=(InputSpec((2,), "float32"),))
    assert rules.check_request(frame) == 1


def test_the_documents_of_a_service_are_those_of_its_hops() -> None:
    RULES.check_hello(json.loads(block("json service-hello")))
    onward = json.loads(block("json service-hop-hello"))
    assert onward == RULES.hello_onward()
    last = replace(RULES, hop=2, name="nsf2", host="n2", next_peer=None)
    last.check_hello(onward)
    path = last.welcome([], RULES.step)["path"]
    assert json.loads(block("json service-welcome")) == RULES.welcome(path, RULES.step)


def test_the_fields_of_a_trace_in_the_document_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| ", DOCUMENT[DOCUMENT.index("\n### Traces\n") :], re.MULTILINE)
    assert rows == [(str(index), name) for index, name in enumerate(FIELDS)]


def test_the_deadlines_of_a_service_in_the_document_are_those_of_the_code() -> None:
    assert f"| from the connection to a complete HELLO | {HELLO_S:g} seconds |" in DOCUMENT
    assert f"still arrives for {LEAVING_S:g} seconds" in DOCUMENT


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
