/* Parsing. Every function reads with bpf_skb_load_bytes, which works on packets whose headers are not linear, and says
 * in its contract what holds when it returns 0. */
#pragma once

#include "maps.h"

#define NEXT_ROUTING 43
#define NEXT_IPV6 41
#define NEXT_TCP 6
#define NEXT_ICMPV6 58
#define ROUTING_TYPE_SRH 4
#define ICMPV6_FIRST_INFO 128 /* smaller types are errors, with the packet that caused them */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ip6 {
    __be32 version_class_label;
    __be16 payload_len;
    __u8 next_header, hop_limit;
    union address source, destination;
} __attribute__((packed));

/* What the proxy must know of an inner packet. For an ICMPv6 error, `flow` is that of the packet it is about. */
struct inner {
    struct ip6 ip;
    __be16 source_port, destination_port;
    __u8 tcp_flags;
    __u8 tcp_len; /* of the TCP header, in bytes */
    __u8 icmp_error;
    union address about_source, about_destination; /* of the packet that an ICMPv6 error is about */
};

/* Read how the packet came into `arrival`, behind the outer header's first 8 bytes at `at`.
 *
 * Returns 0 if the SRH is whole and consistent and has at most MAX_SEGMENTS segments and no TLVs, its active segment
 * is the destination, and an IPv6 packet follows; *srh_len is its length in bytes then. Else the reason to drop it,
 * plus one. */
static __always_inline int read_arrival(struct __sk_buff *skb, __u32 at, struct arrival *arrival, __u32 *srh_len)
{
    struct srh *srh = &arrival->srh;
    __u32 count, left;

    if (bpf_skb_load_bytes(skb, at + 8, arrival, 40))
        return 1 + REASON_TRUNCATED;
    if (srh->routing_type != ROUTING_TYPE_SRH)
        return 1 + REASON_NO_SRH;
    count = srh->last_entry + 1;
    left = srh->segments_left;
    if (count > MAX_SEGMENTS || srh->hdr_ext_len != 2 * count || left >= count)
        return 1 + REASON_BAD_SRH;
    if (srh->next_header != NEXT_IPV6)
        return 1 + REASON_NOT_IPV6;
    /* Masked, so that the verifier sees the bounds. */
    if (bpf_skb_load_bytes(skb, at + 48, arrival->segments, 16 + 16 * ((count - 1) & (MAX_SEGMENTS - 1))))
        return 1 + REASON_TRUNCATED;
    if (!same(&arrival->segments[left & (MAX_SEGMENTS - 1)], &arrival->destination))
        return 1 + REASON_NOT_ACTIVE;
    *srh_len = 8 + 16 * count;
    return 0;
}

/* Read the inner packet at offset `at`.
 *
 * Returns 0 if it is TCP in plain IPv6, or an ICMPv6 error about such a packet. Else the reason to drop it, plus one. */
static __always_inline int read_inner(struct __sk_buff *skb, __u32 at, struct inner *inner)
{
    struct {
        __be16 source_port, destination_port;
        __be32 sequence, acknowledgment;
        __u8 offset, flags;
    } tcp;
    struct ip6 about;
    __u8 type;

    inner->icmp_error = 0;
    inner->tcp_flags = 0;
    if (bpf_skb_load_bytes(skb, at, &inner->ip, sizeof(inner->ip)))
        return 1 + REASON_TRUNCATED;
    if ((bpf_ntohl(inner->ip.version_class_label) >> 28) != 6)
        return 1 + REASON_NOT_IPV6;
    at += sizeof(inner->ip);
    if (inner->ip.next_header == NEXT_TCP) {
        if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp) - 2))
            return 1 + REASON_TRUNCATED;
        inner->source_port = tcp.source_port;
        inner->destination_port = tcp.destination_port;
        inner->tcp_flags = tcp.flags;
        inner->tcp_len = tcp.offset >> 4 << 2;
        return 0;
    }
    if (inner->ip.next_header != NEXT_ICMPV6) {
        /* Hop-by-hop, routing, fragment, destination options: a TCP packet may follow, but is not looked for. */
        bool extension = inner->ip.next_header == 0 || inner->ip.next_header == NEXT_ROUTING ||
                         inner->ip.next_header == 44 || inner->ip.next_header == 60;
        return 1 + (extension ? REASON_FRAGMENT : REASON_NOT_TCP);
    }
    if (bpf_skb_load_bytes(skb, at, &type, 1))
        return 1 + REASON_TRUNCATED;
    if (type >= ICMPV6_FIRST_INFO)
        return 1 + REASON_NOT_TCP;
    if (bpf_skb_load_bytes(skb, at + 8, &about, sizeof(about)) ||
        bpf_skb_load_bytes(skb, at + 8 + sizeof(about), &tcp, 8))
        return 1 + REASON_TRUNCATED;
    if (about.next_header != NEXT_TCP)
        return 1 + REASON_NOT_TCP;
    inner->about_source = about.source;
    inner->about_destination = about.destination;
    inner->source_port = tcp.source_port;
    inner->destination_port = tcp.destination_port;
    inner->icmp_error = 1;
    return 0;
}

/* Whether a packet goes from the client to `service`. An ICMPv6 error goes against the packet that it is about. */
static __always_inline bool is_forward(const struct inner *inner, const union address *service)
{
    return inner->icmp_error ? same(&inner->about_source, service) : same(&inner->ip.destination, service);
}

static __always_inline bool is_backward(const struct inner *inner, const union address *service)
{
    return inner->icmp_error ? same(&inner->about_destination, service) : same(&inner->ip.source, service);
}

/* The flow that an inner packet belongs to, with the service address as this host's sockets see it. */
static __always_inline void make_key(const struct inner *inner, bool forward, const union address *service,
                                     struct flow_key *key)
{
    /* What an ICMPv6 error is about went the other way. */
    bool client_first = forward != inner->icmp_error;

    key->service = *service;
    key->client_port = client_first ? inner->source_port : inner->destination_port;
    key->service_port = client_first ? inner->destination_port : inner->source_port;
    if (inner->icmp_error)
        key->client = client_first ? inner->about_source : inner->about_destination;
    else
        key->client = client_first ? inner->ip.source : inner->ip.destination;
}

/* Exchange the service address `from` for `to` in the headers of a packet that begins at `at`. Only their last four bytes
 * differ, and not the ones' complement sum of these: no checksum changes. */
static __always_inline void exchange_service(struct __sk_buff *skb, __u32 at, const struct inner *inner, bool forward,
                                             const union address *from, const union address *to)
{
    __be32 tail = to->words[3];

    if (from->words[3] == tail)
        return;
    if (same(forward ? &inner->ip.destination : &inner->ip.source, from))
        bpf_skb_store_bytes(skb, at + (forward ? 36 : 20), &tail, 4, 0);
    if (inner->icmp_error)
        bpf_skb_store_bytes(skb, at + 48 + (forward ? 20 : 36), &tail, 4, 0);
}
