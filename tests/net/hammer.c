/* One CPU learns two paths in turns, as from the packets of a flow whose path changes all the time; another one reads
 * the flow's path meanwhile. To be compiled in a copy of the proxy's folder. */
#include "flow.h"

struct lesson {
    struct arrival first, second;
    struct sid sid;
};

BPF_TABLE("array", __u32, struct lesson, lessons, 1);

struct shared {
    __u64 turn;
    __u64 path; /* as in `struct flow` */
    __u64 read, torn;
};
BPF_TABLE("array", __u32, struct shared, everyones, 1);

int learn(struct __sk_buff *skb)
{
    __u32 zero = 0;
    struct lesson *lesson = lessons.lookup(&zero);
    struct shared *shared = everyones.lookup(&zero);
    enum reason reason;
    __u64 number;

    if (!lesson || !shared)
        return TC_ACT_SHOT;
    shared->turn += 1;
    if (shared->turn & 1)
        number = learn_path(&lesson->first, &lesson->sid, &reason);
    else
        number = learn_path(&lesson->second, &lesson->sid, &reason);
    if (!number)
        return TC_ACT_SHOT;
    shared->path = number;
    return TC_ACT_OK;
}

/* A path's parts say the same: the segments as they came are those that go on. */
int check(struct __sk_buff *skb)
{
    __u32 zero = 0, differing = 0;
    struct shared *shared = everyones.lookup(&zero);
    struct path *path;
    __u64 number;

    if (!shared)
        return TC_ACT_SHOT;
    number = shared->path;
    path = paths.lookup(&number);
    if (!path)
        return TC_ACT_OK;
    EACH(i, MAX_SEGMENTS) {
        if (!same(&path->arrival.segments[i], &path->forward.segments[i]))
            differing = 1;
    }
    shared->read += 1;
    shared->torn += differing;
    return TC_ACT_OK;
}
