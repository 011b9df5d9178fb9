"""Addresses of an SR domain and the segment list of a chain: derived, disjoint, configurable, refused with the fix."""

from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msl.config import Config
from msl.errors import ConfigError
from msl.plan import lay_out
from msl.plan.addressing import MAX_CHAINS, MAX_HOSTS, MAX_ROUTERS, SrDomain, alias, chain_sid, decap_sid, overhead
from msl.plan.steering import ChainPlan, DomainPlan, lay_chain, lay_domain

BLOCK = IPv6Network("fd00:6d73:6c::/48")


def config(**changes: Any) -> Config:
    base = {"model": {"factory": "my.models:Net"}, "data": {"factory": "my.data:load"}, "split": {"stages": 4}}
    return Config.model_validate({**base, "hosts": ["n0", "n1", "n2", "n3"], **changes})


def laid(number: int = 1, **changes: Any) -> tuple[DomainPlan, ChainPlan]:
    job = config(**changes)
    hosts, places = lay_out(job)
    domain = lay_domain(job, hosts)
    return domain, lay_chain(job, domain, places, number)


def test_addresses_are_derived_from_block_host_chain_and_hop() -> None:
    domain, chain = laid()
    assert str(domain.host("n1").locator) == "fd00:6d73:6c:2::/64"
    assert str(domain.host("n1").address) == "fd00:6d73:6c:2::1"
    assert str(domain.host("n0").decap) == "fd00:6d73:6c:1:2::"
    assert [str(router.sid) for router in domain.routers] == ["fd00:6d73:6c:f01:1::", "fd00:6d73:6c:f02:1::"]
    assert [str(sid) for sid in chain.sids] == [
        "fd00:6d73:6c:2:101:1::",
        "fd00:6d73:6c:3:101:2::",
        "fd00:6d73:6c:4:101:3::",
    ]
    assert chain.segments == chain.sids
    assert str(chain.service) == "fd00:6d73:6c:ffff:1::100"


@given(st.data())
def test_no_two_of_a_domain_have_the_same_address(data: st.DataObject) -> None:
    domain = SrDomain(BLOCK)
    one, other = (
        (data.draw(st.integers(0, MAX_HOSTS - 1)), data.draw(st.integers(1, MAX_CHAINS)), data.draw(st.integers(1, 64)))
        for _ in range(2)
    )
    sids = [chain_sid(domain.host_locator(host), chain, hop) for host, chain, hop in (one, other)]
    assert (sids[0] == sids[1]) == (one == other)
    assert decap_sid(domain.host_locator(one[0])) not in sids
    router = domain.router_locator(data.draw(st.integers(0, MAX_ROUTERS - 1)))
    assert not any(sid in router for sid in sids)
    services = [domain.service_address(chain) for _, chain, _ in (one, other)]
    assert (services[0] == services[1]) == (one[1] == other[1])
    assert not any(service in domain.host_locator(one[0]) for service in services)
    assert all(address in BLOCK for address in (*sids, *services))


def ones_complement_sum(address: IPv6Address) -> int:
    words = [int.from_bytes(address.packed[i : i + 2], "big") for i in range(0, 16, 2)]
    return sum(words) % 0xFFFF


@given(st.integers(1, MAX_CHAINS), st.integers(0, 200))
def test_an_alias_leaves_every_checksum_as_it_is(chain: int, index: int) -> None:
    service = SrDomain(BLOCK).service_address(chain)
    seen = alias(service, index)
    assert (seen == service) == (index == 0)
    assert ones_complement_sum(seen) == ones_complement_sum(service)
    assert seen.packed[:12] == service.packed[:12]


def test_nsfs_on_one_host_see_the_service_under_different_addresses() -> None:
    _, chain = laid(chain={"nsfs": ["n1", "n1"]})
    first, second, sink = chain.stops
    assert first.service == sink.service == chain.service != second.service
    assert first.sid != second.sid


def test_the_sink_sees_the_address_itself_also_beside_an_nsf() -> None:
    _, chain = laid(chain={"nsfs": ["n1", "n3"]})
    assert chain.stops[-1].service == chain.service
    assert chain.stops[1].service != chain.service


def test_waypoints_stand_before_the_hops_they_are_for() -> None:
    domain, chain = laid(sr={"via": "r2"})
    r2 = domain.router("r2").sid
    assert chain.segments == (r2, chain.sids[0], r2, chain.sids[1], r2, chain.sids[2])
    _, mixed = laid(sr={"via": ["r1", None, "r2"]})
    assert mixed.segments == (domain.router("r1").sid, *chain.sids[:2], r2, chain.sids[2])


def test_chains_on_the_same_hosts_share_no_address() -> None:
    (_, one), (_, two) = laid(1), laid(2)
    assert not {*one.sids, one.service} & {*two.sids, two.service}


def test_the_block_can_be_chosen() -> None:
    domain, chain = laid(sr={"block": "2001:db8:7::/48"})
    assert str(domain.host("n0").locator) == "2001:db8:7:1::/64"
    assert chain.service in domain.block


def test_overhead_is_that_of_outer_header_and_srh() -> None:
    assert [overhead(segments) for segments in (1, 3, 12)] == [64, 96, 240]


@pytest.mark.parametrize(
    ("changes", "wording"),
    [
        ({"sr": {"via": "r9"}}, "sr.via: 'r9': no such router; there are r1, r2"),
        ({"sr": {"via": ["r1"]}}, "sr.via: names 1 waypoints, the chain has 3 hops"),
        ({"sr": {"via": "r1", "max_segments": 5}}, "sr.max_segments: 5: the path has 6 segments; raise it"),
        (
            {"chain": {"nsfs": ["n0", "n1"]}},
            "nsf1 stands on the source's host n0; .* or fabric direct",
        ),
        ({"sr": {"service": "fd00:6d73:6c:2::5"}}, "lies in the locator of host n1"),
        ({"sr": {"service": "ff02::1"}}, "must be a global or unique local unicast address"),
        ({"sr": {"service": "2001:db8::1"}, "chain": {"nsfs": ["n1", "n1"]}}, "leaves no room for 2 NSFs on one host"),
        (
            {"hosts": [{"name": "n0", "locator": "fd00:6d73:6c:2::/64"}, "n1", "n2", "n3"]},
            "locator of host n0 .* and locator of host n1 .* overlap",
        ),
        (
            {"hosts": [{"name": "n0", "locator": "2001:db8::/64"}, "n1", "n2", "n3"]},
            "sr.block: fd00:6d73:6c::/48 does not hold the locator of host n0",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(changes: dict[str, Any], wording: str) -> None:
    with pytest.raises(ConfigError, match=wording):
        laid(**changes)
