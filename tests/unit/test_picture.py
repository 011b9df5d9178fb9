"""The picture of a chain: every node and link, and the path on them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

from msl.metrics.picture import Load, draw
from msl.plan.paths import mirrored
from tests.unit.test_paths import CHAIN

LOADS = {
    (host, router): Load(100.0 * index, 20.0, 1000.0)
    for host in ("n0", "n1", "n2")
    for index, router in enumerate(("r1", "r2"), 1)
}
SVG = "{http://www.w3.org/2000/svg}"


def test_all_that_there_is_stands_in_the_picture() -> None:
    path = mirrored([("r2",), ()]).with_backward(1, ("r2",))
    picture = ET.fromstring(draw(CHAIN, path, ["n0", "n1", "n2"], ["r1", "r2"], LOADS))
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert {"n0", "n1", "n2", "r1", "r2", "source", "nsf1", "sink", "router"} <= set(texts)
    assert len(list(picture.iter(f"{SVG}line"))) == 6
    assert texts.count("100 / 20 Mbit/s, 10%") == texts.count("200 / 20 Mbit/s, 20%") == 3
    ways = list(picture.iter(f"{SVG}polyline"))
    assert len(ways) == 4, "two hops, both ways"
    assert all(len(way.get("points", "").split()) == 4 for way in ways), "each from a host to a router to a host"


def test_names_cannot_break_the_picture() -> None:
    picture = draw(replace(CHAIN, job="<a & b>"), mirrored([(), ()]), ["n0"], ["r1"], {})
    assert "&lt;a &amp; b&gt;" in picture
    ET.fromstring(picture)
