/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: the two ways through a socket hook. `forward` answers where a connect or send goes,
 * `backward` whose reply this is. The hooks themselves (socket.c) only move addresses in and out of their context.
 */

/* The socket's backend for this frontend: the one it has while that is in the run, else a new choice. */
INLINE struct F(slot) *
    F(choose)(u64 netns_cookie, const struct run *run, struct F(slot) * first, const struct F(peer) * peer, u32 *index)
{
	struct F(slot) *slot = NULL;

	if (peer) {
		if (peer->index < run->count) {
			slot = F(slot_at)(run->first + peer->index);
			if (slot && slot->generation == peer->generation) {
				*index = peer->index;
				return slot;
			}
		}
		slot = F(search_run)(run, peer->backend_ip, peer->backend_port, index);
		if (slot)
			return slot;
	}
#if LRP_CLUSTER_IP && LRP_HAVE_NETNS_COOKIE
	if (run->flags & RUN_AFFINITY)
		return F(pick_for_client)(netns_cookie, first, run, index);
#endif
	return F(pick_any)(run, index);
}

/* Choose a backend and remember it with the socket. */
INLINE u32 F(redirect)(struct bpf_sock_addr *ctx, u64 netns_cookie, const struct run *run, struct F(slot) * first,
		       struct F(destination) * to)
{
	bool datagrams = first->frontend.protocol == IPPROTO_UDP;
	struct F(peer) *peer = datagrams ? F(find_peer)(ctx, &first->frontend) : F(only_peer)(ctx);
	struct F(slot) * slot;
	u32 index = 0;

	slot = F(choose)(netns_cookie, run, first, datagrams ? peer : NULL, &index);
	if (!slot)
		return ACTION_PASS; /* not reached: the run was proven right */
	if (!F(remember)(ctx, peer, slot, index)) {
		count(first->id, ACTION_FAILED);
		/* Without memory a datagram's reply would come from a stranger; a TCP stream only loses getpeername. */
		if (datagrams)
			return ACTION_FAILED;
	}
	F(copy_ip)(to->ip, slot->ip);
	to->port = slot->port;
	return ACTION_REDIRECTED;
}

INLINE void F(tell)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, const struct F(destination) * to,
		    u32 hook, u32 action)
{
	struct event event = {.family = FAMILY, .protocol = frontend->protocol};

	F(copy_ip)(event.frontend_ip, frontend->ip);
	event.frontend_port = frontend->port;
	F(copy_ip)(event.backend_ip, to->ip);
	event.backend_port = to->port;
	send_event(&event, ctx, hook, action);
}

/* Where does this connect or send go? Answers ACTION_REDIRECTED with the backend in `to`, or why not. */
INLINE u32 F(forward)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, struct F(destination) * to,
		      u32 hook)
{
	struct run run;
	bool busy = false;
	struct F(slot) *first = F(find_run)(frontend, &run, &busy);
	u64 netns_cookie = 0;
	u32 action, id;

	if (!first) {
		if (busy)
			count(0, ACTION_FAILED);
		/* What comes back from there is no frontend's reply any more. */
		F(release_replies)(ctx, frontend->ip, frontend->port);
		return ACTION_PASS;
	}
	id = first->id;
#if LRP_HAVE_NETNS_COOKIE
	if (run.flags & (RUN_SKIP | RUN_AFFINITY))
		netns_cookie = lrp_netns_cookie(ctx);
	if (run.flags & RUN_SKIP && F(exempt)(netns_cookie, frontend))
		action = ACTION_SKIPPED;
	else
#endif
	    if (run.flags & RUN_REFUSE)
		action = ACTION_REFUSED;
	else
		action = F(redirect)(ctx, netns_cookie, &run, first, to);

	if (action == ACTION_SKIPPED)
		F(release_replies)(ctx, frontend->ip, frontend->port);
	if (action != ACTION_FAILED)
		count(id, action);
	if (watched())
		F(tell)(ctx, frontend, to, hook, action);
	return action;
}

/* Whose reply is this? True: `source` is now the frontend that the socket was sent through. */
INLINE bool F(backward)(struct bpf_sock_addr *ctx, struct F(destination) * source)
{
	struct F(peer) *peer = F(find_replying)(ctx, source->ip, source->port);

	if (!peer)
		return false;
	F(copy_ip)(source->ip, peer->frontend_ip);
	source->port = peer->frontend_port;
	return true;
}
