/* Flows: which path a connection's packets take, who may teach it, and when a connection counts as established.
 *
 * Only forward packets teach, and only of a chain that the host agent has made known to this host. A connection's
 * first packets make an embryo; once this host has an established socket for it, it is promoted to a flow. The host
 * agent deletes flows that have no socket any more. */
#pragma once

#include "path.h"

/* The socket of this host that a packet with these addresses belongs to, if there is one and it is no listener. */
static __always_inline struct bpf_sock *established(struct __sk_buff *skb, const struct flow_key *key)
{
    struct bpf_sock_tuple tuple;
    struct bpf_sock *sk;

    __builtin_memcpy(&tuple.ipv6, key, sizeof(tuple.ipv6));
    sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
    if (sk && sk->state == BPF_TCP_LISTEN) {
        bpf_sk_release(sk);
        return 0;
    }
    return sk;
}

static __always_inline bool is_whole(const struct bpf_sock *sk)
{
    return sk->state != BPF_TCP_NEW_SYN_RECV && sk->state != BPF_TCP_SYN_RECV && sk->state != BPF_TCP_TIME_WAIT;
}

static __always_inline struct flow *find_flow(const struct flow_key *key)
{
    struct flow *flow = flows.lookup((struct flow_key *)key);

    if (!flow)
        flow = embryos.lookup((struct flow_key *)key);
    /* Again: another CPU may have promoted it between the two. */
    return flow ? flow : flows.lookup((struct flow_key *)key);
}

static __always_inline void note_end(struct flow *flow, const struct inner *inner, enum way way)
{
    if (inner->tcp_flags & TCP_FIN)
        flow->finished |= 1 << way;
    if (inner->tcp_flags & TCP_RST)
        flow->finished |= FINISHED_RESET;
    if (inner->tcp_flags & TCP_SYN)
        flow->finished = 0; /* the ports are used again */
}

/* The flow of a forward packet; learns its path if that is new.
 *
 * Returns 0, with the reason to drop the packet, if there is no flow and none can be learnt. */
static __always_inline struct flow *teach(const struct flow_key *key, const struct arrival *arrival,
                                          const struct sid *sid, enum reason *reason)
{
    struct flow fresh = {}, *flow = find_flow(key);
    struct path *known;
    __u64 number;

    if (flow) {
        number = flow->path;
        known = paths.lookup(&number);
        /* The common case ends here: the flow is not written. */
        if (known && (same_arrival(arrival, &known->arrival) || is_older(arrival, bpf_ntohs(known->arrival.srh.tag))))
            return flow;
    }
    number = learn_path(arrival, sid, reason);
    if (!number)
        return 0;
    if (flow) {
        flow->path = number;
        flow->tag = arrival->srh.tag;
        return flow;
    }
    fresh.path = number;
    fresh.tag = arrival->srh.tag;
    fresh.index = sid->index;
    embryos.update((struct flow_key *)key, &fresh);
    return embryos.lookup((struct flow_key *)key);
}

/* Make a flow of an embryo. If `flows` is full it stays an embryo, and works as one. */
static __always_inline void promote(const struct flow_key *key, const struct flow *flow)
{
    struct flow copy = *flow;

    if (!flows.insert((struct flow_key *)key, &copy))
        embryos.delete((struct flow_key *)key);
}
