/* Paths: how a flow's packets came, and the headers that its answers and its onward packets get. */
#pragma once

#include "packet.h"

/* Number of an arrival among `paths`: 64 bits of hash. Two arrivals with the same one cannot both be learnt, which
 * learn_path() notices. */
static __always_inline __u64 hash_arrival(const struct arrival *arrival)
{
    const __u64 *words = (const __u64 *)arrival;
    __u32 count = 5 + 2 * (arrival->srh.last_entry + 1);
    __u64 hash = 0x6d736c0000000001;

    EACH(i, ARRIVAL_WORDS) {
        if (i >= count)
            break;
        hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    }
    return hash;
}

static __always_inline bool same_arrival(const struct arrival *a, const struct arrival *b)
{
    const __u64 *left = (const __u64 *)a, *right = (const __u64 *)b;
    __u32 count = 5 + 2 * (a->srh.last_entry + 1);
    __u64 difference = 0;

    EACH(i, ARRIVAL_WORDS) {
        if (i >= count)
            break;
        difference |= left[i] ^ right[i];
    }
    return !difference;
}

/* Whether a segment list passes the stops of the SID's chain, each of them once and in their order, and this one now.
 * Between them it may have waypoints. A packet that went astray cannot teach a wrong path. */
static __always_inline bool passes_the_chain(const struct arrival *arrival, const struct sid *sid, struct draft *draft)
{
    __u32 last = arrival->srh.last_entry, left = arrival->srh.segments_left;

    /* Kept in memory, where the verifier does not follow their values: it would follow every one of 2^16 ways. */
    draft->matched = 0;
    draft->passed = 0;
    draft->here = ~0;
    EACH(i, MAX_SEGMENTS) { /* in travel order: from the last entry down */
        __u32 entry = (last - i) & (MAX_SEGMENTS - 1), matched = draft->matched;

        if (i > last)
            break;
        EACH(stop, MAX_SEGMENTS) {
            if (stop < sid->num_stops && same(&arrival->segments[entry], &sid->stops[stop]))
                draft->passed += 1;
        }
        if (same(&arrival->segments[entry], &sid->stops[matched & (MAX_SEGMENTS - 1)])) {
            if (entry == left)
                draft->here = matched;
            draft->matched = matched + 1;
        }
    }
    return draft->here == sid->position && draft->matched == sid->num_stops && draft->passed == sid->num_stops;
}

static __always_inline void fill_outer(struct outer *outer, const union address *source, const union address *next,
                                       const struct srh *srh, __u32 last, __u32 left)
{
    __builtin_memset(&outer->ip, 0, sizeof(outer->ip));
    outer->ip.version = 6;
    outer->ip.nexthdr = NEXT_ROUTING;
    outer->ip.hop_limit = 64;
    __builtin_memcpy(&outer->ip.saddr, source, 16);
    __builtin_memcpy(&outer->ip.daddr, next, 16);
    outer->srh.next_header = NEXT_IPV6;
    outer->srh.hdr_ext_len = 2 * (last + 1);
    outer->srh.routing_type = ROUTING_TYPE_SRH;
    outer->srh.segments_left = left;
    outer->srh.last_entry = last;
    outer->srh.flags = 0;
    outer->srh.tag = srh->tag;
}

/* Make a path's headers from its arrival.
 *
 * Forward: as it came, one segment further; the passed segments stay, so that the next proxy learns the way back, too.
 * Backward: the passed segments in reverse, then the outer source, which is the head-end's own SID. */
static __always_inline void make_headers(struct path *path)
{
    const struct arrival *arrival = &path->arrival;
    __u32 last = arrival->srh.last_entry & (MAX_SEGMENTS - 1), left = arrival->srh.segments_left;
    __u32 passed = (last - left) & (MAX_SEGMENTS - 1);

    path->forward_count = 0;
    if (left) {
        fill_outer(&path->forward, &arrival->source, &arrival->segments[(left - 1) & (MAX_SEGMENTS - 1)],
                   &arrival->srh, last, left - 1);
        path->forward_count = last + 1;
    }
    __builtin_memcpy(path->forward.segments, arrival->segments, sizeof(arrival->segments));
    /* In reverse order of travel: the last segment, which is the head-end, stands first. What is behind the passed ones
     * is not sent. */
    EACH(i, MAX_SEGMENTS)
        path->backward.segments[i] = arrival->segments[(last + 1 - i) & (MAX_SEGMENTS - 1)];
    path->backward.segments[0] = arrival->source;
    fill_outer(&path->backward, &arrival->destination, &path->backward.segments[passed], &arrival->srh, passed, passed);
    path->backward_count = passed + 1;
}

/* Learn a path from a packet. Returns its number in `paths`, or 0 if there is no room (*reason says which). */
static __always_inline __u64 learn_path(const struct arrival *arrival, const struct sid *sid, enum reason *reason)
{
    __u64 number = hash_arrival(arrival);
    struct path *known = paths.lookup(&number);
    struct draft *draft;
    __u32 zero = 0;

    *reason = REASON_FULL;
    if (known)
        return same_arrival(arrival, &known->arrival) ? number : 0;
    draft = drafts.lookup(&zero);
    if (!draft)
        return 0;
    if (!passes_the_chain(arrival, sid, draft)) {
        *reason = REASON_WRONG_PATH;
        return 0;
    }
    draft->path.arrival = *arrival;
    make_headers(&draft->path);
    /* Not overwriting: if another CPU was first, its entry is as good. */
    paths.insert(&number, &draft->path);
    known = paths.lookup(&number);
    return known && same_arrival(arrival, &known->arrival) ? number : 0;
}

/* Whether a packet's path is older than one that is known: it was overtaken by packets of a newer path.
 *
 * Generations are serial numbers, as in RFC 1982, but only the last OLD_GENERATIONS of them count as older. No packet is
 * overtaken by so many changes; and a forged or corrupted packet with a generation far ahead does not keep the real
 * ones from teaching again. */
static __always_inline bool is_older(const struct arrival *arrival, __u16 generation)
{
    __u16 behind = generation - bpf_ntohs(arrival->srh.tag);

    return behind && behind <= OLD_GENERATIONS;
}
