/* What the SFC proxy and msl/net/sfc/proxy.py share: keys and values of the maps, marks, reasons to drop.
 *
 * Addresses and ports are in network byte order, everything else in the host's. msl/net/sfc/layout.py spells the same
 * structs for Python; a test compares the sizes of both. */
#pragma once

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>

#define MAX_SEGMENTS 16
#define MAX_FLOWS 65536
#define MAX_EMBRYOS 16384
#define MAX_PATHS 2048
#define MAX_SIDS 1024

#define OLD_GENERATIONS 256

/* Marks what a proxy has decapsulated for a local socket: `ip rule fwmark` makes any address local for it. */
#define DELIVER_MARK 0x6d736c
/* An NSF listens at its SID and this port. */
#define NSF_PORT 7433

union address {
    struct {
        __u64 high, low;
    };
    __be32 words[4];
};

enum kind {
    KIND_NSF = 1,  /* a transparent TCP proxy listens at the SID */
    KIND_SINK = 2, /* the service's own address is on this host */
    KIND_HEAD = 3, /* replies to what this host's head-end has sent */
    KIND_TURN = 4, /* End: a probe of another host turns here, or goes on */
    KIND_PROBES = 5, /* this host's own probes end here */
};

/* Why a packet was dropped; told by name in msl/net/sfc/layout.py, and explained in docs/packet-path.md. */
enum reason {
    REASON_OUTSIDE,      /* the outer source is not of the SR domain (RFC 8754 section 5.1) */
    REASON_TRUNCATED,    /* shorter than its headers say */
    REASON_NO_SRH,       /* for a SID, but without segment routing header */
    REASON_BAD_SRH,      /* hdr_ext_len, last_entry and segments_left contradict each other, or there are TLVs */
    REASON_NOT_ACTIVE,   /* the destination is not the segment that segments_left points at */
    REASON_UNKNOWN_SID,  /* within this host's locator, but nobody's */
    REASON_SL_ZERO,      /* the path ends at an NSF */
    REASON_SL_LEFT,      /* the path goes on behind the sink or the head-end */
    REASON_NOT_IPV6,     /* what is inside is no IPv6 packet (another SRH, say) */
    REASON_FRAGMENT,     /* the inner packet is a fragment, or has other extension headers */
    REASON_NOT_TCP,      /* the inner packet is neither TCP nor an ICMPv6 error about a flow */
    REASON_SERVICE,      /* the inner addresses are not those of the SID's chain */
    REASON_WRONG_PATH,   /* the segment list does not pass the chain's NSFs in their order */
    REASON_NO_FLOW,      /* backward, and of no flow that went forward here */
    REASON_NO_LISTENER,  /* nobody listens at the NSF's SID */
    REASON_FULL,         /* no room for one more path */
    REASON_OUTER_ERROR,  /* ICMPv6 error about an encapsulated packet: a link's MTU is too small, or no route */
    REASON_NO_PATH,      /* from a chain's socket, but no path has been learnt for its flow */
    REASON_NO_ROUTE,     /* no route to the next segment */
    REASON_TOO_BIG,      /* with its encapsulation larger than the link's MTU */
    REASON_HEADROOM,     /* the kernel could not make or remove room for the headers */
    REASON_NOT_PROBE,    /* for the SID of this host's probes, and none of them */
    REASONS,
};

/* settings[0]: where this host stands in the SR domain. */
struct settings {
    __u64 block;      /* first 64 bits of the domain's prefix ... */
    __u64 block_mask; /* ... and which of them count */
    __u64 locator;    /* first 64 bits of the host's locator */
    __u32 is_virtual; /* whether a fabric interface is a veth, whose packets come straight from another TCP */
    __u32 device;     /* interface of the services: what is sent from here is routed as if it came from there */
};

/* sids[address]: what a SID of this host stands for. */
struct sid {
    union address service;            /* the chain's service address, as on the wire */
    union address local;              /* the same as this host's sockets see it; see `alias` in msl/plan */
    union address stops[MAX_SEGMENTS]; /* the chain's SIDs in travel order */
    __u32 num_stops;
    __u32 position; /* of this SID in `stops` */
    __u32 kind;
    __u32 index; /* of its counters in `traffic` */
};

/* services[address]: a service address as sockets of this host see it. */
struct service {
    union address wire; /* the service address, as on the wire */
    __u32 index;         /* of its counters in `traffic` */
    __u32 kind;
    __u16 generation;  /* at a head-end: of its path */
    __u16 has_return;  /* whether `returns` has a way for its answers */
    __u32 unused;
};

/* traffic[index]: what went through a SID; per CPU. */
struct traffic {
    __u64 packets[4], bytes[4]; /* by `enum way` */
};

enum way { IN_FORWARD, OUT_FORWARD, IN_BACKWARD, OUT_BACKWARD };

/* flows[key], embryos[key]: a connection that passes this host. The key is that of its forward packets, as this host's
 * sockets see them; it has the layout of `struct bpf_sock_tuple`. */
struct flow_key {
    union address client, service;
    __be16 client_port, service_port;
} __attribute__((packed));

struct flow {
    __u64 path;      /* key in `paths`; what a path change writes, in one store */
    __u64 last_seen; /* nanoseconds, as CLOCK_MONOTONIC_COARSE */
    __u16 finished;  /* bit `way`: a FIN was seen; FINISHED_RESET: a RST */
    __be16 tag;      /* of the path, for a look without finding it; written after `path` */
    __u32 index;     /* of the SID's counters in `traffic` */
    __u64 packets[4], bytes[4];
};

#define FINISHED_RESET 0x10

/* The segment routing header (RFC 8754 section 2). */
struct srh {
    __u8 next_header, hdr_ext_len, routing_type, segments_left;
    __u8 last_entry, flags;
    __be16 tag; /* generation of the path: the head-end counts it up at each change */
};

/* How a packet came: its outer addresses and its SRH, contiguous as on the wire. */
struct arrival {
    union address source, destination;
    struct srh srh;
    union address segments[MAX_SEGMENTS]; /* in reverse: the last one first */
};

#define ARRIVAL_WORDS (sizeof(struct arrival) / 8)

/* Outer headers, ready to be put before a packet, but for payload length and flow label. */
struct outer {
    struct ipv6hdr ip;
    struct srh srh;
    union address segments[MAX_SEGMENTS];
};

/* paths[hash of arrival]: a path as it was learnt. Never changed once it is there, so that every reader sees a whole
 * one: a flow changes its path by the number of another entry. */
struct path {
    struct arrival arrival;
    struct outer forward, backward;
    __u32 forward_count, backward_count; /* segments in the headers; forward, there are none at the sink */
};

/* returns[service address as this host sees it]: the way of its answers, where it is not that of the flow mirrored. Only
 * the agent writes here, one entry now and then, so that no entry is used again while a packet still reads it. */
struct back {
    struct outer outer;
    __u32 count, unused;
};
