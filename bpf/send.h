/* Sending a packet with outer headers on to their destination. */
#pragma once

#include "packet.h"

#define ETH_LEN sizeof(struct ethhdr)

/* BCC declares bpf_redirect_neigh without its second and third argument. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) = (void *)152;

/* Send a packet to `destination` by the route that the interface `device` would have for it. */
static __always_inline int send_on(struct __sk_buff *skb, __u32 device, const void *source, const void *destination)
{
    struct bpf_fib_lookup route = {};
    struct bpf_redir_neigh next = {};
    long found;

    route.family = 10; /* AF_INET6 */
    route.ifindex = device;
    route.tot_len = skb->gso_size ? 0 : skb->len - ETH_LEN;
    __builtin_memcpy(route.ipv6_src, source, 16);
    __builtin_memcpy(route.ipv6_dst, destination, 16);
    found = bpf_fib_lookup(skb, &route, sizeof(route), BPF_FIB_LOOKUP_DIRECT);
    if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return drop(REASON_TOO_BIG);
    if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
        return drop(REASON_NO_ROUTE);
    /* While the next hop's link-layer address is unknown, the packet waits in the neighbour's queue, and what leaves
     * the queue is addressed by the packet's own route: that of its inner packet, unless the kernel looks the route up
     * itself. */
    if (found == BPF_FIB_LKUP_RET_NO_NEIGH)
        return redirect_neigh(route.ifindex, 0, 0, 0);
    next.nh_family = 10;
    __builtin_memcpy(next.ipv6_nh, route.ipv6_dst, 16);
    return redirect_neigh(route.ifindex, &next, sizeof(next), 0);
}
