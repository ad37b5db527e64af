/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the agent learns of a redirect: counters, always; an event in the ring, while someone watches. */
#ifndef LRP_EVENTS_H
#define LRP_EVENTS_H

INLINE void count(u32 id, u32 action)
{
	struct counters *counters = bpf_map_lookup_elem(map_counters, &id);

	if (!counters)
		return;
	/* Per CPU, and not interrupted by another redirect on it: no atomics. */
	if (action == ACTION_REDIRECTED)
		counters->redirected++;
	else if (action == ACTION_REFUSED)
		counters->refused++;
	else if (action == ACTION_SKIPPED)
		counters->skipped++;
	else
		counters->failed++;
}

INLINE bool watched(void)
{
	u32 zero = 0;
	struct control *control = bpf_map_lookup_elem(map_control, &zero);

	return control && control->watching;
}

INLINE void send_event(struct event *event, struct bpf_sock_addr *ctx, u32 hook, u32 action)
{
	event->hook = hook;
	event->action = action;
#if LRP_HAVE_NETNS_COOKIE
	event->netns_cookie = lrp_netns_cookie(ctx);
#endif
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->command, sizeof(event->command));
	/* A full ring loses the event, not the redirect. */
	lrp_ringbuf_output(map_events, event, sizeof(*event), 0);
}

#endif
