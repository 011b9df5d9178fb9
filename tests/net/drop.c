/* Loses packets: every EVERYth of those that are longer than LONGER, of a router's interface at its ingress.
 *
 * A GSO packet is lost as a whole. Counted are those that came and those that were lost; and of packets that carry one
 * segment only, as a retransmission may, the full-size ones. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

enum { SEEN, LOST, SINGLE };

BPF_TABLE("array", __u32, __u64, counts, 3);

static __always_inline __u64 count(__u32 which)
{
    __u64 *value = counts.lookup(&which);

    return value ? __sync_fetch_and_add(value, 1) : 0;
}

int lose(struct __sk_buff *skb)
{
    if (skb->len <= LONGER)
        return TC_ACT_OK;
    if (skb->gso_segs <= 1)
        count(SINGLE);
    if (count(SEEN) % EVERY != EVERY - 1)
        return TC_ACT_OK;
    count(LOST);
    return TC_ACT_SHOT;
}
