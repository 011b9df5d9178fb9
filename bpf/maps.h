/* The maps. Who writes what: `flows`, `embryos` and `paths` grow here and are swept by the host agent; the counters are
 * written here; everything else is written by the host agent alone. */
#pragma once

#include "msl.h"

BPF_TABLE("array", __u32, struct settings, settings, 1);
BPF_TABLE("hash", union address, struct sid, sids, MAX_SIDS);
BPF_TABLE("hash", union address, struct service, services, MAX_SIDS);
BPF_TABLE("hash", struct flow_key, struct flow, flows, MAX_FLOWS);
/* Flows whose handshake is not done. Least recently used ones go first, so that a SYN flood cannot fill `flows`. */
BPF_TABLE("lru_hash", struct flow_key, struct flow, embryos, MAX_EMBRYOS);
BPF_TABLE("hash", __u64, struct path, paths, MAX_PATHS);
BPF_TABLE("hash", union address, struct back, returns, MAX_SIDS);
BPF_TABLE("percpu_array", __u32, __u64, drops, REASONS);
BPF_TABLE("percpu_array", __u32, struct traffic, traffic, MAX_SIDS);
/* Too large for the stack of 512 bytes. */
BPF_TABLE("percpu_array", __u32, struct arrival, arrivals, 1);
struct draft {
    struct path path;
    __u32 matched, passed, here;
};
BPF_TABLE("percpu_array", __u32, struct draft, drafts, 1);

/* Count `i` from 0 below `limit`. The compiler must not know what `i` is: it would turn the loop's end into another
 * condition that comes to the same, but tells the verifier nothing. */
#define EACH(i, limit) for (__u32 i = 0; ({ asm volatile("" : "+r"(i)); i < (limit); }); i++)

/* Count the packet, and drop it. */
static __always_inline int drop(enum reason reason)
{
    __u32 key = reason;
    __u64 *count = drops.lookup(&key);

    if (count)
        *count += 1;
    return TC_ACT_SHOT;
}

/* Count the packet for its SID and its flow. */
static __always_inline void count(struct __sk_buff *skb, struct flow *flow, __u32 index, enum way way)
{
    struct traffic *sum = traffic.lookup(&index);

    if (sum) {
        sum->packets[way] += 1;
        sum->bytes[way] += skb->len;
    }
    /* Both directions of a flow may be at work on two CPUs, but each way has one at a time in all but rare cases:
     * a lost count is not worth an atomic operation on each packet. */
    flow->packets[way] += 1;
    flow->bytes[way] += skb->len;
    flow->last_seen = bpf_ktime_get_coarse_ns();
}

static __always_inline bool same(const union address *a, const union address *b)
{
    return a->high == b->high && a->low == b->low;
}
