/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: the two ways through a socket hook. `forward` answers where a connect or send goes,
 * `backward` whose reply this is. The hooks themselves (socket.c) only move addresses in and out of their context.
 */

/* The socket's backend for this frontend: the one it has while that is in the run, else a new choice. */
INLINE struct F(slot) *
    F(choose)(u64 netns_cookie, const struct run *run, struct F(slot) * first, const struct F(peer) * peer)
{
	struct F(destination) backend = {};
	struct F(slot) * slot;

	if (peer) {
		if (peer->index < run->count) {
			slot = F(slot_at)(run->first + peer->index);
			/* Generations may repeat after a restart of the agent. */
			if (slot &&
			    !((slot->generation ^ peer->generation) | F(not_backend)(peer, slot->ip, slot->port)))
				return slot;
		}
		F(copy_ip)(backend.ip, peer->backend_ip);
		backend.port = peer->backend_port;
	}
#if LRP_CLUSTER_IP && LRP_HAVE_NETNS_COOKIE
	if (run->flags & RUN_AFFINITY)
		return F(choose_for_client)(netns_cookie, run, first);
#endif
	return F(again_or_any)(run, &backend);
}

/* Choose a backend. fresh: the socket is not known to be there, so it is to be remembered. */
INLINE bool F(redirect)(struct bpf_sock_addr *ctx, u64 netns_cookie, const struct run *run, struct F(slot) * first,
			struct F(choice) * choice)
{
	struct F(peer) *peer = F(peer_of)(ctx, &first->frontend);
	struct F(slot) * slot;

	/* A TCP socket's entry may be another frontend's, and says nothing of where this connection should go. */
	slot = F(choose)(netns_cookie, run, first, first->frontend.protocol == IPPROTO_UDP ? peer : NULL);
	if (!slot)
		return false; /* not reached: the run was proven right */
	F(copy_ip)(choice->backend.ip, slot->ip);
	choice->backend.port = slot->port;
	choice->generation = slot->generation;
	choice->index = slot->index;
	choice->fresh = !peer || F(not_same)(peer, &first->frontend, &choice->backend);
	if (!choice->fresh)
		F(place_in_run)(peer, choice);
	return true;
}

INLINE void F(tell)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, const struct F(destination) * to,
		    u32 hook, u32 action)
{
	struct event event = {.family = FAMILY, .protocol = frontend->protocol};

	F(copy_ip)(event.frontend_ip, frontend->ip);
	event.frontend_port = frontend->port;
	F(copy_ip)(event.backend_ip, to->ip);
	event.backend_port = to->port;
	event.hook = hook;
	event.action = action;
	name_caller(&event, ctx);
	send_event(&event);
}

/* The socket goes to a backend, or to the address that it named: what it remembers of that address changes. */
INLINE u32 F(note)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, u32 id, u32 action,
		   const struct F(choice) * choice)
{
	struct F(destination) to = choice->backend;

	if (action == ACTION_REDIRECTED && !choice->fresh)
		return action;
	if (action != ACTION_REDIRECTED) {
		F(copy_ip)(to.ip, frontend->ip);
		to.port = frontend->port;
	}
	F(release_replies)(ctx, &to);
	if (action != ACTION_REDIRECTED || F(remember)(ctx, frontend, choice))
		return action;
	count(id, ACTION_FAILED);
	/* Without memory a datagram's reply would come from a stranger; a TCP stream only loses getpeername. */
	return frontend->protocol == IPPROTO_UDP ? ACTION_FAILED : action;
}

/* What is counted and told: who was sent to the original destination was not redirected. */
INLINE u32 F(account)(const struct run *run, u32 action)
{
	return action == ACTION_REDIRECTED && run->flags & RUN_ORIGINAL ? ACTION_SKIPPED : action;
}

/* Where does this connect or send go? Answers ACTION_REDIRECTED with the backend in `to`, or why not. */
INLINE u32 F(forward)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, struct F(destination) * to,
		      u32 hook)
{
	struct run run = {};
	struct F(choice) choice = {};
	bool busy = false;
	struct F(slot) *first = F(find_run)(frontend, &run, &busy);
	u32 action = ACTION_PASS;
	u64 netns_cookie = 0;
	bool skips = false;

	if (busy)
		count(0, ACTION_FAILED);
	if (first && run.flags & RUN_DIRECT)
		first = NULL; /* a concern of the TC level */
#if LRP_HAVE_NETNS_COOKIE
	if (first && run.flags & (RUN_SKIP | RUN_AFFINITY))
		netns_cookie = lrp_netns_cookie(ctx);
	skips = first && run.flags & RUN_SKIP && F(exempt)(netns_cookie, frontend);
	if (skips)
		first = F(original_of)(&run);
#endif
	/* Ask the pointer itself: left to the compiler, the flag is asked again, and most verifiers don't know that it tells. */
	asm volatile("" : "+r"(first));
	if (first) {
		if (run.flags & RUN_REFUSE)
			action = ACTION_REFUSED;
		else if (F(redirect)(ctx, netns_cookie, &run, first, &choice))
			action = ACTION_REDIRECTED;
	} else if (skips) {
		action = ACTION_SKIPPED;
	}
	if (action != ACTION_REFUSED)
		action = F(note)(ctx, frontend, run.id, action, &choice);
	if (action == ACTION_PASS)
		return action;
	if (action == ACTION_REDIRECTED)
		*to = choice.backend;
	if (action != ACTION_FAILED)
		count(run.id, F(account)(&run, action));
	if (watched())
		F(tell)(ctx, frontend, to, hook, F(account)(&run, action));
	return action;
}

/* Whose reply is this? True: `source` is now the frontend that the socket was sent through. */
INLINE bool F(backward)(struct bpf_sock_addr *ctx, struct F(destination) * source)
{
	struct F(peer) *peer = F(find_peer)(ctx, AS_SOURCE, source->ip, source->port);

	if (!peer)
		return false;
	F(copy_ip)(source->ip, peer->frontend_ip);
	source->port = peer->frontend_port;
	return true;
}
