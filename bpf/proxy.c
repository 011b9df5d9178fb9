/* The SFC proxy of a host: End.AD-like functions for TCP-terminating NSFs (draft-ietf-spring-sr-service-programming).
 *
 * `ingress` stands at the ingress of the fabric interfaces, `egress` at the egress of the device that the host's routes
 * of services lead to, `edge` at the ingress of all other interfaces. docs/packet-path.md follows a packet through. */
#include "flow.h"
#include "overtaken.h"
#include "turn.h"

static __always_inline bool in_domain(const struct settings *own, const union address *address)
{
    return (address->high & own->block_mask) == own->block;
}

/* Hand a packet to the transparent listener of an NSF. */
static __always_inline int deliver_to_listener(struct __sk_buff *skb, const struct flow_key *key,
                                               const union address *at)
{
    struct bpf_sock_tuple tuple;
    struct bpf_sock *sk;
    long failed;

    __builtin_memcpy(&tuple.ipv6, key, sizeof(tuple.ipv6));
    __builtin_memcpy(&tuple.ipv6.daddr, at, 16);
    tuple.ipv6.dport = bpf_htons(NSF_PORT);
    sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
    if (!sk)
        return drop(REASON_NO_LISTENER);
    if (sk->state != BPF_TCP_LISTEN) {
        bpf_sk_release(sk);
        return drop(REASON_NO_LISTENER);
    }
    failed = bpf_sk_assign(skb, sk, 0);
    bpf_sk_release(sk);
    return failed ? drop(REASON_NO_LISTENER) : TC_ACT_OK;
}

/* Room that TCP leaves before a packet, at the least: MAX_TCP_HEADER. */
#define TCP_HEADROOM 192
#define LINK_ROOM 16 /* what the kernel keeps of it for an Ethernet header */

/* Keep TCP from coalescing a packet with others, by pulling a byte of its payload into its linear part.
 *
 * A packet that comes over a veth is still the sender's own buffer. When headers were put before it and it had too
 * little headroom, the kernel gave it a larger head without adding that to its truesize, as it belonged to a socket
 * (pskb_expand_head). Coalescing subtracts the head's real size: the sum's truesize gets smaller than its length, and
 * the receiver's scaling_ratio, 256 times length over truesize in 8 bits, runs over to 0. From then on it advertises
 * a window of 0, for ever. Up to three segments fit the headroom. */
static __always_inline void prevent_coalescing(struct __sk_buff *skb, const struct inner *inner, __u32 outer_len)
{
    __u32 zero = 0, headers = ETH_LEN + sizeof(struct ip6) + inner->tcp_len;
    struct settings *own = settings.lookup(&zero);

    if (inner->icmp_error || outer_len + LINK_ROOM + sizeof(struct ip6) + inner->tcp_len <= TCP_HEADROOM)
        return;
    if (own && own->is_virtual && skb->len > headers)
        bpf_skb_pull_data(skb, headers + 1);
}

/* Take the outer headers off, and show the service address as this host's sockets see it. Returns 0 if done. */
static __always_inline long decapsulate(struct __sk_buff *skb, __u32 outer_len, const struct inner *inner, bool forward,
                                        const struct sid *sid)
{
    /* The size of a segment stays what its sender made it: both ends leave room for the headers. */
    if (bpf_skb_adjust_room(skb, -(__s32)outer_len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return -1;
    exchange_service(skb, ETH_LEN, inner, forward, &sid->service, &sid->local);
    prevent_coalescing(skb, inner, outer_len);
    return 0;
}

static __always_inline int forward_in(struct __sk_buff *skb, const struct sid *sid, const struct arrival *arrival,
                                      const struct inner *inner, __u32 outer_len)
{
    bool is_nsf = sid->kind == KIND_NSF, opens = (inner->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
    bool overtaken;
    enum reason reason = REASON_NO_FLOW;
    union address at = arrival->destination;
    struct bpf_sock *sk = 0;
    struct flow_key key;
    struct flow *flow;

    make_key(inner, true, &sid->local, &key);
    if (inner->icmp_error) {
        flow = find_flow(&key);
        if (!flow)
            return drop(REASON_NO_FLOW);
    } else {
        flow = teach(&key, arrival, sid, &reason);
        if (!flow)
            return drop(reason);
        note_end(flow, inner, IN_FORWARD);
    }
    overtaken = is_older(arrival, bpf_ntohs(flow->tag));
    count(skb, flow, sid->index, IN_FORWARD);
    if (decapsulate(skb, outer_len, inner, true, sid))
        return drop(REASON_HEADROOM);
    if (overtaken)
        hide_timestamps(skb, inner);
    skb->mark = is_nsf ? DELIVER_MARK : 0;
    if (inner->icmp_error)
        return TC_ACT_OK;
    /* The kernel finds an established socket by itself, and faster than after bpf_sk_assign: early demultiplexing also
     * brings the route. */
    if (!opens && flows.lookup(&key))
        return TC_ACT_OK;
    sk = established(skb, &key);
    if (sk) {
        /* A SYN is for the kernel, too, if there is a socket: a listener would say nothing to one that comes again, or
         * that uses the ports of a connection of which only this end is left. */
        if (!opens && is_whole(sk))
            promote(&key, flow);
        bpf_sk_release(sk);
        return TC_ACT_OK;
    }
    /* A new connection, or the end of a handshake by SYN cookie: the listener knows. */
    return is_nsf ? deliver_to_listener(skb, &key, &at) : TC_ACT_OK;
}

static __always_inline int backward_in(struct __sk_buff *skb, const struct sid *sid, const struct arrival *arrival,
                                       const struct inner *inner, __u32 outer_len)
{
    struct flow_key key;
    struct flow *flow;
    bool overtaken;

    make_key(inner, false, &sid->local, &key);
    flow = find_flow(&key);
    if (!flow)
        return drop(REASON_NO_FLOW);
    note_end(flow, inner, IN_BACKWARD);
    overtaken = is_older(arrival, bpf_ntohs(flow->tag));
    count(skb, flow, sid->index, IN_BACKWARD);
    if (decapsulate(skb, outer_len, inner, false, sid))
        return drop(REASON_HEADROOM);
    if (overtaken)
        hide_timestamps(skb, inner);
    skb->mark = DELIVER_MARK; /* for the client's address, which is the NSF's own towards the service */
    return TC_ACT_OK;
}

/* Replies to what this host's head-end has sent: for any local client, of any chain. */
static __always_inline int head_in(struct __sk_buff *skb, const struct sid *sid, const struct arrival *arrival,
                                   const struct inner *inner, __u32 outer_len)
{
    union address from = inner->icmp_error ? inner->about_destination : inner->ip.source;
    struct service *service = services.lookup(&from);
    struct traffic *sum = traffic.lookup((__u32 *)&sid->index);
    bool overtaken;

    if (!service || service->kind != KIND_HEAD)
        return drop(REASON_SERVICE);
    if (sum) {
        sum->packets[IN_BACKWARD] += 1;
        sum->bytes[IN_BACKWARD] += skb->len;
    }
    overtaken = is_older(arrival, service->generation);
    if (bpf_skb_adjust_room(skb, -(__s32)outer_len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return drop(REASON_HEADROOM);
    prevent_coalescing(skb, inner, outer_len);
    if (overtaken)
        hide_timestamps(skb, inner);
    return TC_ACT_OK;
}

/* Whether a packet is shorter than its headers say. The kernel checks the inner one's length itself, but only after the
 * packet has taught a path. */
static __always_inline bool is_cut(struct __sk_buff *skb, __u32 payload_len, __u32 srh_len, const struct inner *inner)
{
    __u32 needed = srh_len + sizeof(inner->ip) + bpf_ntohs(inner->ip.payload_len);

    return payload_len < needed || skb->len < ETH_LEN + sizeof(struct ip6) + needed;
}

static __always_inline int srv6_in(struct __sk_buff *skb, const struct settings *own, const struct sid *sid,
                                   __u32 payload_len)
{
    __u32 zero = 0, srh_len = 0, outer_len;
    struct arrival *arrival = arrivals.lookup(&zero);
    struct inner inner;
    int fault;

    if (!arrival)
        return TC_ACT_SHOT;
    fault = read_arrival(skb, ETH_LEN, arrival, &srh_len);
    if (fault)
        return drop(fault - 1);
    if (sid->kind == KIND_TURN)
        return turn(skb, own, arrival);
    if (sid->kind == KIND_PROBES)
        return probe_in(skb, own, arrival, sizeof(struct ip6) + srh_len);
    if (sid->kind == KIND_NSF && !arrival->srh.segments_left)
        return drop(REASON_SL_ZERO);
    if (sid->kind != KIND_NSF && arrival->srh.segments_left)
        return drop(REASON_SL_LEFT);
    outer_len = sizeof(struct ip6) + srh_len;
    fault = read_inner(skb, ETH_LEN + outer_len, &inner);
    if (fault)
        return drop(fault - 1);
    if (is_cut(skb, payload_len, srh_len, &inner))
        return drop(REASON_TRUNCATED);
    if (sid->kind == KIND_HEAD)
        return head_in(skb, sid, arrival, &inner, outer_len);
    if (is_forward(&inner, &sid->service))
        return forward_in(skb, sid, arrival, &inner, outer_len);
    if (sid->kind == KIND_NSF && is_backward(&inner, &sid->service))
        return backward_in(skb, sid, arrival, &inner, outer_len);
    return drop(REASON_SERVICE);
}

/* Fabric interfaces, ingress: packets for SIDs of this host. Everything else passes. */
int ingress(struct __sk_buff *skb)
{
    __u32 zero = 0;
    struct settings *own = settings.lookup(&zero);
    union address destination;
    struct sid *sid;
    struct ip6 ip;
    __u8 type;

    if (skb->protocol != bpf_htons(ETH_P_IPV6) || !own || bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)))
        return TC_ACT_OK;
    if (ip.next_header == NEXT_ROUTING && !in_domain(own, &ip.source))
        return drop(REASON_OUTSIDE);
    if (ip.destination.high != own->locator)
        return TC_ACT_OK;
    destination = ip.destination;
    sid = sids.lookup(&destination);
    if (ip.next_header == NEXT_ROUTING)
        return sid ? srv6_in(skb, own, sid, bpf_ntohs(ip.payload_len)) : drop(REASON_UNKNOWN_SID);
    if (!sid)
        return TC_ACT_OK; /* the host's own address */
    if (ip.next_header == NEXT_ICMPV6 && !bpf_skb_load_bytes(skb, ETH_LEN + sizeof(ip), &type, 1) &&
        type < ICMPV6_FIRST_INFO)
        return drop(REASON_OUTER_ERROR);
    return drop(REASON_NO_SRH);
}

/* All other interfaces, ingress: nothing from there may reach a SID (RFC 8754 section 5.1). */
int edge(struct __sk_buff *skb)
{
    __u32 zero = 0;
    struct settings *own = settings.lookup(&zero);
    struct srh srh;
    struct ip6 ip;

    if (skb->protocol != bpf_htons(ETH_P_IPV6) || !own || bpf_skb_load_bytes(skb, ETH_LEN, &ip, sizeof(ip)))
        return TC_ACT_OK;
    if (in_domain(own, &ip.destination) || in_domain(own, &ip.source))
        return drop(REASON_OUTSIDE);
    if (ip.next_header == NEXT_ROUTING && !bpf_skb_load_bytes(skb, ETH_LEN + sizeof(ip), &srh, sizeof(srh)) &&
        srh.routing_type == ROUTING_TYPE_SRH)
        return drop(REASON_OUTSIDE);
    return TC_ACT_OK;
}

/* Put headers with so many segments before a packet, and send it to the first of them. */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct outer *outer, __u32 segments)
{
    /* Masked, so that the verifier sees the bounds. */
    __u32 len = sizeof(outer->ip) + sizeof(outer->srh) + 16 + 16 * ((segments - 1) & (MAX_SEGMENTS - 1));
    __u32 first;
    __be16 payload_len;

    if (bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_FIXED_GSO))
        return drop(REASON_HEADROOM);
    if (bpf_skb_store_bytes(skb, ETH_LEN, (void *)outer, len, 0))
        return drop(REASON_HEADROOM);
    /* The same flow takes the same one of equal routes (RFC 6438). */
    first = bpf_htonl(0x60000000 | (bpf_get_hash_recalc(skb) & 0xfffff));
    payload_len = bpf_htons(skb->len - ETH_LEN - sizeof(struct ip6));
    bpf_skb_store_bytes(skb, ETH_LEN, &first, 4, 0);
    bpf_skb_store_bytes(skb, ETH_LEN + 4, &payload_len, 2, 0);
    return send_on(skb, skb->ifindex, &outer->ip.saddr, &outer->ip.daddr);
}

/* The services' device, egress: what a chain's sockets on this host send. */
int egress(struct __sk_buff *skb)
{
    union address source, destination;
    struct service *service;
    struct flow_key key;
    struct inner inner;
    struct flow *flow;
    struct path *path;
    struct back *back;
    bool forward;
    __u64 number;
    int fault;

    if (skb->protocol != bpf_htons(ETH_P_IPV6))
        return TC_ACT_OK;
    inner.ip.destination.words[0] = 0;
    fault = read_inner(skb, ETH_LEN, &inner);
    if (fault && (inner.ip.destination.words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
        return TC_ACT_OK; /* the kernel's own multicast: it ends at the other end of the device */
    if (fault)
        return drop(fault - 1);
    destination = inner.icmp_error ? inner.about_source : inner.ip.destination;
    service = services.lookup(&destination);
    forward = service != 0;
    if (!service) {
        source = inner.icmp_error ? inner.about_destination : inner.ip.source;
        service = services.lookup(&source);
    }
    if (!service)
        return drop(REASON_SERVICE);
    make_key(&inner, forward, forward ? &destination : &source, &key);
    flow = find_flow(&key);
    if (!flow)
        return drop(REASON_NO_PATH);
    number = flow->path;
    path = paths.lookup(&number);
    if (!path || (forward && !path->forward_count))
        return drop(REASON_NO_PATH);
    note_end(flow, &inner, forward ? OUT_FORWARD : OUT_BACKWARD);
    count(skb, flow, service->index, forward ? OUT_FORWARD : OUT_BACKWARD);
    exchange_service(skb, ETH_LEN, &inner, forward, forward ? &destination : &source, &service->wire);
    if (!forward && service->has_return) {
        back = returns.lookup(&source);
        if (back)
            return encapsulate(skb, &back->outer, back->count);
    }
    return forward ? encapsulate(skb, &path->forward, path->forward_count)
                   : encapsulate(skb, &path->backward, path->backward_count);
}
