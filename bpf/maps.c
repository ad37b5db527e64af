/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps, for BCC to create and pin (one that is pinned already is kept: the loader has checked it by then).
 * This file is compiled on its own, once per layout; the programs then refer to the maps by file descriptor (maps.h).
 *
 *   LRP_TABLES, LRP_SOCKETS, LRP_FLOWS
 *                             pin folders: what this node redirects; what sockets remember; flows. They are apart because
 *                             a table may change its size while sockets go on remembering, and flows go on.
 *                             Without LRP_FLOWS there is no TC level, and its tables take no room.
 *   LRP_MAX_FRONTENDS, LRP_MAX_BACKENDS, LRP_MAX_SKIPS, LRP_MAX_CLIENTS, LRP_MAX_FLOWS, LRP_RING_BYTES
 */
#include "config.h"
#include "structs.h"

#define NO_PREALLOC 1 /* BPF_F_NO_PREALLOC: memory follows use; socket storage demands it */

/* BCC reads a map's type and its pin's path from the section that BPF_F_TABLE makes of "type:path". */
#define HASH(key, value, name, max) BPF_F_TABLE("hash:" LRP_TABLES #name, key, value, lrp_##name, max, NO_PREALLOC)
#define ARRAY(value, name, max) BPF_F_TABLE("array:" LRP_TABLES #name, u32, value, lrp_##name, max, 0)
#define PLACES(value, name) BPF_F_TABLE("array:" LRP_SOCKETS #name, u32, value, lrp_##name, LRP_PLACES, 0)
#define LRU(key, value, name, max) BPF_F_TABLE("lru_hash:" LRP_TABLES #name, key, value, lrp_##name, max, 0)
#define PERCPU_ARRAY(value, name, max) BPF_F_TABLE("percpu_array:" LRP_TABLES #name, u32, value, lrp_##name, max, 0)
#define RINGBUF(value, name, bytes) BPF_F_TABLE("ringbuf:" LRP_TABLES #name, value, value, lrp_##name, bytes, 0)
#define SOCKET_STORAGE(value, name) BPF_F_TABLE("sk_storage:" LRP_SOCKETS #name, int, value, lrp_##name, 0, NO_PREALLOC)

HASH(struct frontend4, struct frontend_id, frontends4, LRP_MAX_FRONTENDS);
HASH(struct frontend6, struct frontend_id, frontends6, LRP_MAX_FRONTENDS);
ARRAY(struct run_start, runs, LRP_MAX_FRONTENDS);
ARRAY(struct slot4, backends4, LRP_MAX_BACKENDS);
ARRAY(struct slot6, backends6, LRP_MAX_BACKENDS);
HASH(struct client4, u8, skip4, LRP_MAX_SKIPS);
HASH(struct client6, u8, skip6, LRP_MAX_SKIPS);
LRU(struct client4, struct affinity4, affinity4, LRP_MAX_CLIENTS);
LRU(struct client6, struct affinity6, affinity6, LRP_MAX_CLIENTS);
PERCPU_ARRAY(struct counters, counters, LRP_MAX_FRONTENDS);
ARRAY(struct control, control, CONTROL_KEYS);
RINGBUF(struct event, events, LRP_RING_BYTES);

#ifdef LRP_FLOWS
/*
 * Entries of flows: two for each, one each way. `flows` is not allocated beforehand, for most nodes never have so many
 * connections; one entry more than a power of two gives it twice the buckets, so that it is as fast full as empty. An
 * LRU is: a smaller one is faster, for its memory stays warm, and what it displaces is over in all likelihood.
 */
#define FLOWS(family)                                                                                                  \
	BPF_F_TABLE("hash:" LRP_FLOWS "flows" #family, struct flow_key##family, struct flow##family,                   \
		    lrp_flows##family, 2 * LRP_MAX_FLOWS + 1, NO_PREALLOC);                                            \
	BPF_F_TABLE("lru_hash:" LRP_FLOWS "recent" #family, struct flow_key##family, struct flow##family,              \
		    lrp_recent##family, LRP_MAX_FLOWS / 2 + 1024, 0);                                                  \
	BPF_F_TABLE("lru_hash:" LRP_FLOWS "fragments" #family, struct flow_key##family, struct flow##family,           \
		    lrp_fragments##family, LRP_MAX_FRAGMENTS, 0)

FLOWS(4);
FLOWS(6);
#endif

PLACES(struct place4, places4);
PLACES(struct place6, places6);
SOCKET_STORAGE(struct few_peers4, few_peers4);
SOCKET_STORAGE(struct few_peers6, few_peers6);
SOCKET_STORAGE(struct many_peers4, many_peers4);
SOCKET_STORAGE(struct many_peers6, many_peers6);

/* Without a function the compiler writes no BTF, and the maps would come without their layouts. Never loaded. */
int lrp_layouts(struct bpf_sock_addr *ctx)
{
	return 1;
}
