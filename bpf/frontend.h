/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: from a frontend to a backend. Shared by the socket and the TC level.
 *
 * One lookup to know, one to send: the frontends map gives the run, the backends map a slot. The agent replaces a run
 * by writing a new one elsewhere and then the frontend's value, while we are reading; and the kernel reuses a hash
 * value's memory for other keys at once. So a run that was read may be another frontend's, and only its first slot
 * proves it right: it carries its frontend's key. A mismatch means "read again". After a match all slots of the run
 * hold still, for the agent leaves old runs alone until every reader has left.
 */

INLINE bool F(same_frontend)(const struct F(frontend) * a, const struct F(frontend) * b)
{
	return F(same_ip)(a->ip, b->ip) && a->port == b->port && a->protocol == b->protocol;
}

INLINE struct F(slot) * F(slot_at)(u32 index)
{
	return bpf_map_lookup_elem(F(map_backends), &index);
}

/* Find the frontend's run and its first slot. NULL: it is no frontend, or (busy set) it never held still. */
INLINE struct F(slot) * F(find_run)(const struct F(frontend) * frontend, struct run *run, bool *busy)
{
	struct F(slot) * slot;
	u64 *value, whole;
	int try;

#pragma clang loop unroll(disable)
	for (try = 0; try < LRP_LOOKUP_TRIES; try++) {
		value = bpf_map_lookup_elem(F(map_frontends), (void *)frontend);
		if (!value)
			return NULL;
		whole = *(volatile u64 *)value; /* one load: see struct run */
		__builtin_memcpy(run, &whole, sizeof(*run));
		slot = F(slot_at)(run->first);
		if (slot && F(same_frontend)(&slot->frontend, frontend))
			return slot;
	}
	*busy = true;
	return NULL;
}

/* Find a backend in a run again, by its address. NULL: it has left (or stands beyond LRP_SCAN_MAX). */
INLINE struct F(slot) * F(search_run)(const struct run *run, const __be32 *ip, __be16 port, u32 *index)
{
	struct F(slot) * slot;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_SCAN_MAX; i++) {
		if (i >= run->count)
			return NULL;
		slot = F(slot_at)(run->first + i);
		if (slot && slot->port == port && F(same_ip)(slot->ip, ip)) {
			*index = i;
			return slot;
		}
	}
	return NULL;
}

/* Any backend of the run, each as likely as the others. */
INLINE struct F(slot) * F(pick_any)(const struct run *run, u32 *index)
{
	*index = 0;
	if (run->count > 1)
		*index = ((u64)bpf_get_prandom_u32() * run->count) >> 32;
	return F(slot_at)(run->first + *index);
}

#if LRP_HAVE_NETNS_COOKIE
/* Does this client reach the original destination instead? */
INLINE bool F(exempt)(u64 netns_cookie, const struct F(frontend) * frontend)
{
	struct F(client) client = {.netns_cookie = netns_cookie, .frontend = *frontend};

	return bpf_map_lookup_elem(F(map_skip), &client) != NULL;
}
#endif

#if LRP_CLUSTER_IP && LRP_HAVE_NETNS_COOKIE
/* The backend that this client had last, while its timeout runs and the backend is there; else any. */
INLINE struct F(slot) *
    F(pick_for_client)(u64 netns_cookie, const struct F(slot) * first, const struct run *run, u32 *index)
{
	struct F(client) client = {.netns_cookie = netns_cookie, .frontend = first->frontend};
	struct F(affinity) now = {.last_used = bpf_ktime_get_ns()};
	struct F(affinity) *last = bpf_map_lookup_elem(F(map_affinity), &client);
	struct F(slot) *slot = NULL;

	if (last && now.last_used - last->last_used < first->affinity_seconds * 1000000000ull)
		slot = F(search_run)(run, last->ip, last->port, index);
	if (!slot)
		slot = F(pick_any)(run, index);
	if (slot) {
		F(copy_ip)(now.ip, slot->ip);
		now.port = slot->port;
		bpf_map_update_elem(F(map_affinity), &client, &now, BPF_ANY);
	}
	return slot;
}
#endif
