/* Packets that a change of path has let others overtake, and what TCP must not see of them. */
#pragma once

#include "send.h"

/* How TCP options begin that have timestamps and nothing else before them: two NOPs, kind 8, length 10 (RFC 7323). */
#define TIMESTAMPS bpf_htonl(0x0101080a)
#define TIMESTAMPS_LEN 12
#define TCP_CHECKSUM 16

/* Hide the timestamps of an overtaken packet that begins behind the Ethernet header.
 *
 * Its receiver has seen newer ones by now, and would take it for an old duplicate (PAWS, RFC 7323 section 5): what comes
 * late over the way before would all be lost, and be sent again only after a timeout. Without the option it is taken
 * in as any segment that was reordered. */
static __always_inline void hide_timestamps(struct __sk_buff *skb, const struct inner *inner)
{
    __u32 options = ETH_LEN + sizeof(struct ip6) + 20;
    __be32 nops[3] = {0x01010101, 0x01010101, 0x01010101}, found[3];
    __s64 difference;

    if (inner->icmp_error || inner->tcp_flags & TCP_SYN || inner->tcp_len < 20 + TIMESTAMPS_LEN)
        return;
    if (bpf_skb_load_bytes(skb, options, found, sizeof(found)) || found[0] != TIMESTAMPS)
        return;
    difference = bpf_csum_diff(found, sizeof(found), nops, sizeof(nops), 0);
    if (bpf_skb_store_bytes(skb, options, nops, sizeof(nops), 0))
        return;
    bpf_l4_csum_replace(skb, ETH_LEN + sizeof(struct ip6) + TCP_CHECKSUM, 0, difference, 0);
}
