/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: the two ways through a pod's link. `outward` takes what the pod sends, `inward` what it is
 * to get. The programs themselves (tc.c) only tell the families apart.
 */

/* The pod, as skip and affinity know it. */
#define CLIENT_OF(p) (CLIENT_BY_LINK | (p)->key.ifindex)

/*
 * It is none of ours. A SYN then begins a connection that is not either: an earlier one of its name is over. (Where there
 * is no frontend, there can only be one if a frontend was removed lately, which the agent tells.)
 */
INLINE enum verdict F(goes_elsewhere)(const struct F(packet) * p)
{
	struct F(flow) *flow = NULL;

	if (p->key.protocol == IPPROTO_TCP)
		flow = bpf_map_lookup_elem(F(map_flows), (void *)&p->key);
	if (flow && !(flow->flags & FLOW_REPLY))
		bpf_map_delete_elem(F(map_flows), (void *)&p->key);
	return PASS;
}

/* Whether a packet goes on with what began the flow: the same SYN, or the next datagram. */
INLINE bool F(is_sent_again)(const struct F(packet) * p, const struct F(flow) * flow, u32 now)
{
	return p->key.protocol == IPPROTO_TCP ? flow->isn == p->seq : F(is_alive)(flow, IPPROTO_UDP, now);
}

#if LRP_NEW_FLOWS
/* Count, and tell whoever watches. */
INLINE void F(report)(const struct F(work) * work, u32 action)
{
	struct event event = {
	    .hook = HOOK_PACKET,
	    .action = action,
	    .family = FAMILY,
	    .protocol = work->p.key.protocol,
	    .frontend_port = work->p.key.tuple.dport,
	    .ifindex = work->p.key.ifindex,
	};

	count(work->run.id, action);
	if (!watched())
		return;
	F(copy_ip)(event.frontend_ip, work->p.key.tuple.daddr);
	if (action == ACTION_REDIRECTED || (action == ACTION_SKIPPED && work->run.flags & RUN_ORIGINAL)) {
		F(copy_ip)(event.backend_ip, work->becomes.becomes.daddr);
		event.backend_port = work->becomes.becomes.dport;
	}
	send_event(&event);
}

/* Whether a flow's backend is one of the run's. */
INLINE bool F(is_served)(struct F(flow) * flow, const struct run *run)
{
	struct F(slot) *slot = NULL;

	if (flow->index < run->count)
		slot = F(slot_at)(run->first + flow->index);
	if (slot && !(F(ip_differs)(slot->ip, flow->becomes.daddr) | (slot->port ^ flow->becomes.dport)))
		return true;
	slot = F(search_run)(run, flow->becomes.daddr, flow->becomes.dport);
	if (slot)
		flow->index = slot->index;
	return slot != NULL;
}

/*
 * Whether a packet to a frontend goes where the flow went before: a SYN that is sent again, the next datagram. A flow of
 * datagrams may outlive a backend that comes back at the same address, so once in each unit of time all is looked at anew.
 */
INLINE bool F(keeps)(struct __sk_buff *skb, const struct F(packet) * p, struct F(flow) * flow, const struct run *run,
		     bool bridged, u32 now)
{
	if (!F(is_sent_again)(p, flow, now) || !F(is_served)(flow, run))
		return false;
	if (flow->seen == now)
		return true;
	if (bridged && !(run->flags & RUN_DIRECT) && !(flow->flags & FLOW_BOUNCE)) {
		flow->flags &= ~(FLOW_ON_LINK | FLOW_OFF_LINK);
		F(find_on_link)(skb, p, flow);
	}
	return F(is_answerable)(&p->key, flow, now);
}

/* Choose a backend. False: there is none, which is not reached, as the run was proven right. */
INLINE bool F(choose_backend)(struct __sk_buff *skb, struct F(work) * work, const struct F(slot) * first, bool bridged)
{
	const struct F(packet) *p = &work->p;
	struct F(flow) *flow = &work->becomes;
	struct F(slot) * slot;

#if LRP_CLUSTER_IP
	if (work->run.flags & RUN_AFFINITY)
		slot = F(choose_for_client)(CLIENT_OF(p), &work->run, first);
	else
#endif
		slot = F(pick_any)(&work->run);
	if (!slot)
		return false;
	F(copy_ip)(flow->becomes.saddr, p->key.tuple.saddr);
	F(copy_ip)(flow->becomes.daddr, slot->ip);
	flow->becomes.dport = slot->port;
	flow->index = slot->index;
	flow->isn = p->seq;
	flow->flags = 0;
	if (work->run.flags & RUN_DIRECT) {
		flow->flags = FLOW_OFF_LINK; /* it is addressed as it should be */
		return true;
	}
	if (!F(ip_differs)(slot->ip, p->key.tuple.saddr)) {
		flow->flags = FLOW_BOUNCE;
		F(copy_ip)(flow->becomes.saddr, F(loopback));
	} else if (bridged) {
		F(find_on_link)(skb, p, flow);
	}
	return true;
}

/* A SYN, or a datagram: if it is to a frontend, it goes where the flow goes, or begins one. */
INLINE enum verdict F(to_frontend)(struct __sk_buff *skb, struct F(work) * work, bool bridged, u32 now)
{
	const struct F(packet) *p = &work->p;
	struct F(frontend) frontend = {.port = p->key.tuple.dport, .protocol = p->key.protocol};
	struct run *run = &work->run;
	struct F(flow) * flow;
	struct F(slot) * first;
	bool busy = false, again;

	F(copy_ip)(frontend.ip, p->key.tuple.daddr);
	first = F(find_run)(&frontend, run, &busy);
	if (!first) {
		if (busy)
			count(0, ACTION_FAILED);
		return !busy && holds(CONTROL_SETTLED) ? PASS : F(goes_elsewhere)(p);
	}
	if (run->flags & RUN_SKIP && F(exempt)(CLIENT_OF(p), &frontend)) {
		first = F(original_of)(run);
		if (!first) {
			F(report)(work, ACTION_SKIPPED);
			return F(goes_elsewhere)(p);
		}
	}
	if (run->flags & RUN_REFUSE) {
		F(report)(work, ACTION_REFUSED);
		return REFUSE;
	}
	flow = bpf_map_lookup_elem(F(map_recent), (void *)&p->key);
	if (flow && flow->flags & FLOW_RESET && flow->isn == p->seq)
		return F(goes_elsewhere)(p); /* there was no room for this connection: see `establish` */
	if (flow && !(flow->flags & FLOW_TAKEN) && F(keeps)(skb, p, flow, run, bridged, now)) {
		work->becomes = *flow;
		return TRANSLATE;
	}
	again = flow && flow->flags & FLOW_TAKEN && F(is_sent_again)(p, flow, now);
	if (!F(choose_backend)(skb, work, first, bridged) || !F(begin)(&p->key, &work->becomes, now, !flow)) {
		F(report)(work, ACTION_FAILED);
		return F(goes_elsewhere)(p);
	}
	if (!(run->flags & RUN_DIRECT) && !again)
		F(report)(work, run->flags & RUN_ORIGINAL ? ACTION_SKIPPED : ACTION_REDIRECTED);
	return TRANSLATE;
}
#else
/* Known flows only: a SYN that is sent again, a datagram like one before. */
INLINE enum verdict F(to_frontend)(struct __sk_buff *skb, struct F(work) * work, bool bridged, u32 now)
{
	const struct F(packet) *p = &work->p;
	struct F(flow) *flow = bpf_map_lookup_elem(F(map_recent), (void *)&p->key);
	bool known = flow && !(flow->flags & FLOW_RESET) && F(is_sent_again)(p, flow, now);

	if (known)
		work->becomes = *flow;
	if (known && flow->flags & FLOW_TAKEN) {
		work->becomes.flags &= ~FLOW_TAKEN;
		if (F(begin)(&p->key, &work->becomes, now, false))
			return TRANSLATE;
	} else if (known && F(is_answerable)(&p->key, flow, now)) {
		return TRANSLATE;
	}
	return F(stands_aside)(p, &work->becomes, now) ? TRANSLATE : F(goes_elsewhere)(p);
}
#endif

/* Whether a TCP packet answers a SYN: a SYN-ACK, or a RST, which then has no sequence number (RFC 9293, 3.5.2). */
INLINE bool F(answers_syn)(const struct F(packet) * p)
{
	u8 flags = p->flags & (TCP_SYN | TCP_RST | TCP_ACK);

	return flags == (TCP_SYN | TCP_ACK) || (flags == (TCP_RST | TCP_ACK) && !p->seq);
}

INLINE enum verdict F(decide_outward)(struct __sk_buff *skb, struct F(work) * work, bool bridged, u32 now)
{
	struct F(packet) *p = &work->p;
	enum verdict verdict;

	if (p->part == LATER_FRAGMENT)
		return F(find_fragment)(p, &work->becomes);
	if (p->key.protocol == IPPROTO_TCP) {
		if (F(answers_syn)(p))
			return F(answer)(p, &work->becomes, now);
		if ((p->flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
			return F(go_on)(skb, p, &work->becomes, bridged, now);
	} else if (!F(ip_differs)(p->key.tuple.daddr, F(loopback))) {
		return F(answer_datagram)(p, &work->becomes, now);
	}
	verdict = F(to_frontend)(skb, work, bridged, now);
	if (verdict == TRANSLATE && p->key.protocol == IPPROTO_TCP)
		F(note_asking)(&p->key, &work->becomes, now);
	return verdict;
}

INLINE enum verdict F(decide_inward)(struct __sk_buff *skb, struct F(work) * work, u32 now)
{
	struct F(packet) *p = &work->p;

	if (p->part == LATER_FRAGMENT)
		return F(find_fragment)(p, &work->becomes);
	if (p->key.protocol == IPPROTO_UDP)
		return F(answer_datagram)(p, &work->becomes, now);
	if (F(answers_syn)(p))
		return F(answer)(p, &work->becomes, now);
	if (p->flags & TCP_SYN)
		return PASS; /* for a server in the pod */
	return F(go_on)(skb, p, &work->becomes, false, now);
}

/* Memory to work in, set up for a packet of this link. */
INLINE struct F(work) * F(begin_work)(struct __sk_buff *skb, u8 way)
{
	struct F(work) *work = F(work_area)();

	if (!work)
		return NULL; /* not reached: the array has one entry */
	work->p.key.ifindex = skb->ifindex;
	work->p.key.way = way;
	work->p.key.pad = 0;
	return F(parse)(skb, &work->p) ? work : NULL;
}

/* What a pod sends. bridged: its link is the port of a bridge. */
INLINE int F(outward)(struct __sk_buff *skb, bool bridged)
{
	struct F(work) *work = F(begin_work)(skb, FROM_POD);
	enum verdict verdict;

	if (!work)
		return TC_NEXT;
	if (work->p.key.protocol != IPPROTO_TCP && work->p.key.protocol != IPPROTO_UDP)
		return F(translate_error)(skb, &work->p);
	verdict = F(decide_outward)(skb, work, bridged, flow_clock(&work->clock));
	if (verdict == TRANSLATE)
		return F(rewrite)(skb, &work->p, &work->becomes);
	if (verdict == REFUSE)
		return F(refuse)(skb, &work->p);
	return verdict == DROP ? TC_DROP : F(pass)(&work->p);
}

/* What a pod is to get. */
INLINE int F(inward)(struct __sk_buff *skb)
{
	struct F(work) *work = F(begin_work)(skb, TO_POD);
	enum verdict verdict;

	if (!work)
		return TC_NEXT;
	if (work->p.key.protocol != IPPROTO_TCP && work->p.key.protocol != IPPROTO_UDP)
		return F(translate_error)(skb, &work->p);
	verdict = F(decide_inward)(skb, work, flow_clock(&work->clock));
	if (verdict == TRANSLATE)
		return F(rewrite)(skb, &work->p, &work->becomes);
	return verdict == DROP ? TC_DROP : F(pass)(&work->p);
}
