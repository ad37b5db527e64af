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

/* Whether the agent says so. */
INLINE bool holds(u32 key)
{
	struct control *control = bpf_map_lookup_elem(map_control, &key);

	return control && *(volatile u32 *)&control->holds;
}

INLINE bool watched(void)
{
	return holds(CONTROL_WATCHING);
}

INLINE void send_event(struct event *event)
{
	/* A full ring loses the event, not the redirect. */
	lrp_ringbuf_output(map_events, event, sizeof(*event), 0);
}

#endif
