"""Where the kernel would harm a chain, and that each remedy is needed: without it the same traffic fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.net.chain import lay, running
from tests.net.patched import patched

pytestmark = pytest.mark.root

NO_PULL = ("proxy.c", "bpf_skb_pull_data(skb, headers + 1);", "(void)headers;")
# Another size for each segment makes the receiver reckon its ratio more often, and so meet a bad one sooner.
LOOSE_GSO = ("proxy.c", " | BPF_F_ADJ_ROOM_FIXED_GSO", "")
LOOSE_GSO_IN = ("proxy.c", "BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO", "BPF_ADJ_ROOM_MAC, 0")
NO_LOOKUP = ("send.h", "if (found == BPF_FIB_LKUP_RET_NO_NEIGH)\n        return", "if (0)\n        return")
CONNECTIONS, PARALLEL, NUM_BYTES = 400, 8, 2 << 20
"""Enough for one of the receivers to coalesce its first full-size segments."""
STALL_S = 4.0


def transfer(times: int = 1, via: str | None = "r1") -> None:
    """Many connections, both ways at once; by default over more segments than TCP leaves headroom for."""
    domain, plan = lay(via=via)
    with running(domain) as chains, chains.open(plan, copy=True) as chain:
        for _ in range(times):
            chain.load(CONNECTIONS, NUM_BYTES, parallel=PARALLEL, stall_s=STALL_S).finish(120)
        assert chains.drops() == {}


def test_no_receiver_is_stuck_at_a_zero_window() -> None:
    transfer()


def test_three_segments_need_no_remedy(tmp_path: Path) -> None:
    with patched(tmp_path, NO_PULL, LOOSE_GSO, LOOSE_GSO_IN):
        transfer(via=None)


def test_the_window_survives_even_segments_of_changing_size(tmp_path: Path) -> None:
    with patched(tmp_path, LOOSE_GSO, LOOSE_GSO_IN):
        transfer()


def test_coalesced_packets_would_stick_a_receiver_at_a_zero_window(tmp_path: Path) -> None:
    with patched(tmp_path, NO_PULL, LOOSE_GSO, LOOSE_GSO_IN), pytest.raises(AssertionError, match="stalled"):
        transfer(times=5)


def repeated_syns() -> int:
    """SYNs that TCP repeats at a first exchange, where an NSF has never sent anything on its way onward."""
    domain, plan = lay(via=(None, None, "r2"))
    with running(domain) as chains, chains.open(plan) as chain:
        before = chains.inside("n2", syn_retransmissions)
        chain.load(1, 1000).finish(20)
        return chains.inside("n2", syn_retransmissions) - before


def syn_retransmissions() -> int:
    names, values = (
        line.split()
        for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt")
    )
    return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])


def test_no_packet_is_lost_while_a_next_hop_is_looked_for() -> None:
    assert repeated_syns() == 0


def test_packets_would_be_lost_while_a_next_hop_is_looked_for(tmp_path: Path) -> None:
    with patched(tmp_path, NO_LOOKUP):
        assert repeated_syns() > 0
