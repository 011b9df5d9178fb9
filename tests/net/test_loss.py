"""Routers lose full-size packets: TCP sends them again, and they must fit with the longest of segment lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from msl.net.sfc.agent import HostAgent
from msl.plan.addressing import overhead
from tests.net.chain import OpenChain, lay, path, running
from tests.net.losses import losing

pytestmark = pytest.mark.root

DOMAIN, PLAN = lay()
LONGEST = path(DOMAIN, PLAN, ["r1", "r1", "r1"])
MTU = 9000
SINGLE_SEGMENT = MTU - overhead(12) - 100
"""A packet that is longer, outer headers included, carries a full-size segment."""


@pytest.fixture
def chain() -> Iterator[OpenChain]:
    with running(DOMAIN) as chains, chains.open(PLAN) as chain:
        yield chain


def transfer_with_losses(chain: OpenChain, every: int, stall_s: float = 5.0) -> None:
    """Both ways at once on the longest path, while the router loses full-size packets."""
    chain.steer(LONGEST)
    with losing(chain.chains, "r1", every, SINGLE_SEGMENT) as losses:
        reports = chain.load(4, 2 * 10**7, parallel=4, stall_s=stall_s).finish(120)
        assert len(reports) == 4
        assert losses.lost >= 20
        assert losses.single >= 20, "full-size segments came singly, too"


def test_the_longest_list_has_as_many_segments_as_the_domain_allows() -> None:
    assert len(LONGEST) == DOMAIN.max_segments == 12


@pytest.mark.parametrize("every", [10, 200])
def test_lost_full_size_segments_get_through_when_sent_again(chain: OpenChain, every: int) -> None:
    transfer_with_losses(chain, every)
    assert chain.chains.drops() == {}
    assert chain.chains.checksum_errors() == 0


def test_without_room_for_the_headers_segments_sent_again_are_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = HostAgent._reckon_mtu

    def without_room(agent: HostAgent, netlink: object) -> int:
        return whole(agent, netlink) + agent.domain.overhead  # type: ignore[arg-type]

    monkeypatch.setattr(HostAgent, "_reckon_mtu", without_room)
    with running(DOMAIN) as chains, chains.open(PLAN, may_complain=True) as chain:
        with pytest.raises(AssertionError, match=r"stalled|cannot connect"):
            transfer_with_losses(chain, 10, stall_s=3.0)
        assert any("too_big" in drops for drops in chains.drops().values())
