"""Paths in words and as segment lists: the one gives the other back, and what passes no chain is refused."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msl.config import Config
from msl.errors import ConfigError
from msl.plan import lay_chain, lay_domain, lay_out
from msl.plan.addressing import Sid
from msl.plan.paths import hop_names, hops_of, mirrored, planned, return_segments, segments_of, show, ways_of

CONFIG = Config.model_validate(
    {
        "model": {"factory": "a:b"},
        "data": {"factory": "a:b"},
        "split": {"cut": ["x", "y"]},
        "testbed": {"planes": 3},
        "sr": {"via": ["r2", None]},
    }
)
HOSTS, PLACES = lay_out(CONFIG)
DOMAIN = lay_domain(CONFIG, HOSTS)
CHAIN = lay_chain(CONFIG, DOMAIN, PLACES, 1)
WAYS = st.lists(st.sampled_from(["r1", "r2", "r3"]), max_size=3).map(tuple)


@given(st.tuples(WAYS, WAYS))
def test_a_segment_list_says_which_ways_it_takes(forward: tuple[tuple[str, ...], ...]) -> None:
    assert ways_of(CHAIN, DOMAIN, segments_of(CHAIN, DOMAIN, forward)) == forward


def test_the_path_of_the_configuration_is_where_a_chain_begins() -> None:
    assert planned(CHAIN, DOMAIN) == mirrored([("r2",), ()])
    assert segments_of(CHAIN, DOMAIN, planned(CHAIN, DOMAIN).forward) == CHAIN.segments


def test_hops_have_the_names_of_their_ends() -> None:
    assert hop_names(CHAIN) == ["source:nsf1", "nsf1:sink"]
    assert hops_of(CHAIN) == [("n0", "n1"), ("n1", "n2")]


def test_a_way_back_ends_at_the_head_end_and_passes_the_stops_between() -> None:
    routers = {router.name: router.sid for router in DOMAIN.routers}
    head = DOMAIN.host("n0").decap
    assert return_segments(CHAIN, DOMAIN, 0, ("r3",)) == (routers["r3"], head)
    assert return_segments(CHAIN, DOMAIN, 1, ()) == (CHAIN.sids[0], head)


def test_a_path_is_shown_in_one_line() -> None:
    path = mirrored([("r2",), ()]).with_backward(1, ("r3",)).with_backward(0, ())
    assert show(path, CHAIN) == (
        "source@n0 -> r2 -> nsf1@n1 -> sink@n2 (source:nsf1 back as the routes lead; nsf1:sink back through r3)"
    )


def test_what_does_not_pass_the_chain_is_refused() -> None:
    first, last = CHAIN.sids
    wanted = f"{first}, {last}"
    for segments in ((first,), (last, first), (first, last, DOMAIN.routers[0].sid), ()):
        with pytest.raises(ConfigError, match=wanted):
            ways_of(CHAIN, DOMAIN, segments)
    stranger = Sid(IPv6Address("fd00::1"))
    with pytest.raises(ConfigError, match="segment fd00::1: neither a router's SID nor the chain's next one"):
        ways_of(CHAIN, DOMAIN, (first, stranger, last))
    with pytest.raises(ConfigError, match="'r9': no such router; there are r1, r2, r3"):
        segments_of(CHAIN, DOMAIN, [("r9",), ()])
    with pytest.raises(ConfigError, match=r"13 segments is longer than sr.max_segments \(12\)"):
        segments_of(CHAIN, DOMAIN, [("r1",) * 11, ()])
