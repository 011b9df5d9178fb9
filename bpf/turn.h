/* Probes of ways: they pass an End of this host and go on or back, or are this host's own and end here. */
#pragma once

#include "send.h"

#define NEXT_UDP 17

/* End (RFC 8986 section 4.1): on to the next segment. */
static __always_inline int turn(struct __sk_buff *skb, const struct settings *own, const struct arrival *arrival)
{
    __u8 hops, left = arrival->srh.segments_left;
    union address next;

    if (!left)
        return drop(REASON_SL_ZERO);
    if (bpf_skb_load_bytes(skb, ETH_LEN + 7, &hops, 1) || hops < 2)
        return drop(REASON_NO_ROUTE);
    hops -= 1;
    left -= 1;
    next = arrival->segments[left & (MAX_SEGMENTS - 1)];
    bpf_skb_store_bytes(skb, ETH_LEN + 7, &hops, 1, 0);
    bpf_skb_store_bytes(skb, ETH_LEN + 24, &next, sizeof(next), 0);
    bpf_skb_store_bytes(skb, ETH_LEN + sizeof(struct ip6) + 3, &left, 1, 0);
    return send_on(skb, own->device, &arrival->source, &next);
}

/* A probe of this host is back: a datagram to the host itself, and nothing else. */
static __always_inline int probe_in(struct __sk_buff *skb, const struct settings *own, const struct arrival *arrival,
                                    __u32 outer_len)
{
    struct ip6 ip;

    if (arrival->srh.segments_left)
        return drop(REASON_SL_LEFT);
    if (bpf_skb_load_bytes(skb, ETH_LEN + outer_len, &ip, sizeof(ip)) || ip.next_header != NEXT_UDP ||
        ip.destination.high != own->locator)
        return drop(REASON_NOT_PROBE);
    if (bpf_skb_adjust_room(skb, -(__s32)outer_len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return drop(REASON_HEADROOM);
    return TC_ACT_OK;
}
