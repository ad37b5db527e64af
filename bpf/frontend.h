/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: from a frontend to a backend. Shared by the socket and the TC level.
 *
 * One lookup to know, one to send: the frontends map gives the frontend's id, by which the runs map gives the start of
 * its run of slots in the backends map. The agent replaces a run by writing a new one elsewhere and then its start, while
 * we are reading; and the kernel reuses a hash value's memory for other keys at once. So a run that was read may be
 * another frontend's, and only its first slot proves it right: it carries its frontend's key. A mismatch means "read
 * again". After a match all slots of the run hold still, for the agent leaves old runs alone until every reader has left.
 */

INLINE bool F(same_frontend)(const struct F(frontend) * a, const struct F(frontend) * b)
{
	return !(F(ip_differs)(a->ip, b->ip) | (a->port ^ b->port) | (a->protocol ^ b->protocol));
}

INLINE struct F(slot) * F(slot_at)(u32 index)
{
	return bpf_map_lookup_elem(F(map_backends), &index);
}

/* Where the run of this id starts, if there is such an id. One load: an update is one store. */
INLINE bool F(run_starts)(u32 id, u32 *first)
{
	struct run_start *start = bpf_map_lookup_elem(map_runs, &id);

	if (!start)
		return false;
	*first = *(volatile u32 *)&start->first;
	return true;
}

/* Find the frontend's run and its first slot. NULL: it is no frontend, or (busy set) it never held still. */
INLINE struct F(slot) * F(find_run)(const struct F(frontend) * frontend, struct run *run, bool *busy)
{
	struct F(slot) * slot;
	struct frontend_id *value;
	int try;

#pragma clang loop unroll(disable)
	for (try = 0; try < LRP_LOOKUP_TRIES; try++) {
		value = bpf_map_lookup_elem(F(map_frontends), (void *)frontend);
		if (!value)
			return NULL;
		run->id = *(volatile u32 *)&value->id;
		if (!F(run_starts)(run->id, &run->first))
			continue;
		slot = F(slot_at)(run->first);
		if (slot && F(same_frontend)(&slot->frontend, frontend)) {
			run->count = slot->count;
			run->flags = slot->flags;
			return slot;
		}
	}
	*busy = true;
	return NULL;
}

/* Find a backend in a run again, by its address. NULL: it has left (or stands beyond LRP_SCAN_MAX). */
INLINE struct F(slot) * F(search_run)(const struct run *run, const __be32 *ip, __be16 port)
{
	struct F(slot) * slot;
	u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_SCAN_MAX; i++) {
		if (i >= run->count)
			return NULL;
		slot = F(slot_at)(run->first + i);
		if (slot && !(F(ip_differs)(slot->ip, ip) | (slot->port ^ port)))
			return slot;
	}
	return NULL;
}

/* Any backend of the run, each as likely as the others. */
INLINE struct F(slot) * F(pick_any)(const struct run *run)
{
	u32 index = 0;

	if (run->count > 1)
		index = ((u64)bpf_get_prandom_u32() * run->count) >> 32;
	return F(slot_at)(run->first + index);
}

/* Does this client reach the original destination instead? */
INLINE bool F(exempt)(u64 who, const struct F(frontend) * frontend)
{
	struct F(client) client = {.who = who, .frontend = *frontend};

	return bpf_map_lookup_elem(F(map_skip), &client) != NULL;
}

/*
 * Who is exempt reaches the original destination. Of a Service, where kube-proxy is replaced, that is for us to find: the
 * run of its own endpoints stands right behind the policy's, and is as surely the frontend's as that one. `run` becomes it.
 * NULL: the packet names its destination, or kube-proxy finds it.
 */
INLINE struct F(slot) * F(original_of)(struct run *run)
{
	struct F(slot) *slot = NULL;

#if LRP_CLUSTER_IP
	if (run->flags & RUN_HAS_ORIGINAL)
		slot = F(slot_at)(run->first + run->count);
	if (slot) {
		run->first += run->count;
		run->count = slot->count;
		run->flags = slot->flags;
	}
#endif
	return slot;
}

/* Of a run, the backend with this address while it is there, else any. Without a port, any. */
INLINE struct F(slot) * F(again_or_any)(const struct run *run, const struct F(destination) * backend)
{
	struct F(slot) *slot = NULL;

	if (backend->port)
		slot = F(search_run)(run, backend->ip, backend->port);
	return slot ? slot : F(pick_any)(run);
}

#if LRP_CLUSTER_IP
/* The address of the backend that this client had last, while its timeout runs. */
INLINE void F(recall_client)(const struct F(client) * client, u64 now, u32 seconds, struct F(destination) * backend)
{
	struct F(affinity) *last = bpf_map_lookup_elem(F(map_affinity), (void *)client);

	if (last && now - last->last_used < seconds * 1000000000ull) {
		F(copy_ip)(backend->ip, last->ip);
		backend->port = last->port;
	}
}

INLINE void F(note_client)(const struct F(client) * client, u64 now, const struct F(slot) * slot)
{
	struct F(affinity) choice = {.last_used = now, .port = slot->port};

	F(copy_ip)(choice.ip, slot->ip);
	bpf_map_update_elem(F(map_affinity), (void *)client, &choice, BPF_ANY);
}

/* The backend that this client had last, while its timeout runs and the run has it; else any. */
INLINE struct F(slot) * F(choose_for_client)(u64 who, const struct run *run, const struct F(slot) * first)
{
	struct F(client) client = {.who = who, .frontend = first->frontend};
	struct F(destination) backend = {};
	u64 now = bpf_ktime_get_ns();
	struct F(slot) * slot;

	F(recall_client)(&client, now, first->affinity_seconds, &backend);
	slot = F(again_or_any)(run, &backend);
	if (slot)
		F(note_client)(&client, now, slot);
	return slot;
}
#endif
