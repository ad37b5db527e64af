/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: the flows of the TC level, and the way of a packet through them.
 *
 *   recent4/6      LRU    what is new or short: TCP from its SYN to the answer, UDP
 *   flows4/6       hash   TCP connections that were answered; the agent sweeps out those that have ended or gone silent
 *   fragments4/6   LRU    datagrams in pieces: what became of the first piece
 *
 * A flow has two entries, one for its client's packets and one for the replies; each says what the packet becomes. Both
 * are keyed by the packet as it comes, and by the pod's link. Which table is looked in follows from the packet, so that
 * one look-up tells whose it is: a SYN, its answer (SYN-ACK, or a RST without a sequence number) and UDP are in the
 * first, all else of TCP is in the second. Only a SYN or a datagram to a frontend begins a flow. Other TCP packets that
 * are in no table pass: they belong to connections that are older than the frontend.
 *
 * A backend may have a connection of a new flow's ports that is none of ours, or that is over for us: one that is older than
 * the frontend, or that it closed a moment ago. It then answers the SYN by an ACK that tells where that one is. The client
 * gets this as from the frontend, and sends its SYN again at once, which takes another port (FLOW_TAKEN); the RST that it
 * sends besides is dropped, for it would end the other connection. Since this needs a look-up in the first table for what
 * is not in the second, it is done only where a SYN has just passed that the packet may belong to (`asking`).
 *
 * Established connections can't be displaced by new flows, for these wait in the LRU until they are answered. When
 * `flows` is full the connection is not redirected: its SYN-ACK is dropped, and the client's next SYN passes untouched.
 *
 * Towards a backend, a flow must be told from every other flow of its pod, and from what the pod sends to the backend
 * itself. So a backend's own address is a frontend too (RUN_DIRECT), whose flows become what they are; and a flow whose
 * source port is taken towards its backend gets another one.
 *
 * Entries are changed in place: the kernel replaces a hash entry by another one, and a reader may see neither.
 */

/* A flow's packets, seen from the other end. */
INLINE void F(reverse)(struct F(tuple) * to, const struct F(tuple) * from)
{
	F(copy_ip)(to->saddr, from->daddr);
	F(copy_ip)(to->daddr, from->saddr);
	to->sport = from->dport;
	to->dport = from->sport;
}

INLINE bool F(same_tuple)(const struct F(tuple) * a, const struct F(tuple) * b)
{
	return !(F(ip_differs)(a->saddr, b->saddr) | F(ip_differs)(a->daddr, b->daddr) | (a->sport ^ b->sport) |
		 (a->dport ^ b->dport));
}

/* Whether an entry's flow may still send something. */
INLINE bool F(is_alive)(const struct F(flow) * flow, u8 protocol, u32 now)
{
	s32 age = now - flow->seen; /* a packet on another CPU may be ahead of ours */

	if (flow->flags & FLOW_RESET || (flow->flags & FLOW_FIN_SENT && flow->flags & FLOW_FIN_BACK))
		return age <= LRP_ENDED_LIFETIME;
	return age <= (protocol == IPPROTO_UDP ? LRP_UDP_LIFETIME : LRP_HALF_OPEN_LIFETIME);
}

/* Whether a connection that was answered has ended, or half of it, so long ago that its port may be given to another. */
INLINE bool F(is_over)(const struct F(flow) * flow, u32 now)
{
	return flow->flags & (FLOW_RESET | FLOW_FIN_SENT | FLOW_FIN_BACK) && !F(is_alive)(flow, IPPROTO_TCP, now);
}

/* Whether the packets of an entry for replies are another connection's. */
INLINE bool F(is_anothers)(const struct F(flow) * flow)
{
	return (flow->flags & (FLOW_REPLY | FLOW_TAKEN)) == (FLOW_REPLY | FLOW_TAKEN);
}

/* The key of a flow's other direction. */
INLINE void F(other_key)(struct F(flow_key) * other, const struct F(flow_key) * key, const struct F(flow) * flow)
{
	F(reverse)(&other->tuple, &flow->becomes);
	other->ifindex = key->ifindex;
	other->protocol = key->protocol;
	other->way = flow->flags & FLOW_BOUNCE ? FROM_POD : key->way ^ 1;
	other->pad = 0;
}

/* Is this the entry of packets that become `tuple`? */
INLINE bool F(leads_to)(const struct F(flow) * flow, const struct F(tuple) * tuple)
{
	return F(same_tuple)(&flow->becomes, tuple);
}

/*
 * Whether replies with this key are some other flow's. back: what they would become for ours. absent: set where the LRU
 * has no such key. An established connection keeps its port however long it is silent.
 */
INLINE bool F(is_taken)(const struct F(flow_key) * reply, const struct F(tuple) * back, u32 now, bool *absent)
{
	struct F(flow) *found = bpf_map_lookup_elem(F(map_recent), (void *)reply);

	*absent = !found;
	if (found && (found->flags & FLOW_TAKEN || !F(leads_to)(found, back)) &&
	    F(is_alive)(found, reply->protocol, now))
		return true;
	if (reply->protocol != IPPROTO_TCP)
		return false;
	found = bpf_map_lookup_elem(F(map_flows), (void *)reply);
	return found && !F(leads_to)(found, back) && !F(is_over)(found, now);
}

#if !LRP_NEW_FLOWS
/* Whether packets with this key would become something else than `tuple`, be it by a flow that is over. */
INLINE bool F(is_marked)(const struct F(flow_key) * key, const struct F(tuple) * tuple)
{
	struct F(flow) *found = bpf_map_lookup_elem(F(map_recent), (void *)key);

	if (found && !F(leads_to)(found, tuple))
		return true;
	if (key->protocol != IPPROTO_TCP)
		return false;
	found = bpf_map_lookup_elem(F(map_flows), (void *)key);
	return found && !F(leads_to)(found, tuple);
}
#endif

/* Find a source port that tells this flow's replies from all others; begin with its own. */
INLINE bool F(find_port)(const struct F(flow_key) * key, struct F(flow) * flow, struct F(flow_key) * reply, u32 now,
			 bool *absent)
{
	struct F(tuple) back;
	int try;

	F(reverse)(&back, &key->tuple);
	F(other_key)(reply, key, flow);
#pragma clang loop unroll(disable)
	for (try = 0; try < LRP_PORT_TRIES; try++) {
		if (!F(is_taken)(reply, &back, now, absent)) {
			flow->becomes.sport = reply->tuple.dport;
			return true;
		}
		/* Above the ports that clients are usually given, so that few are taken. */
		reply->tuple.dport = bpf_htons(61000 + (bpf_get_prandom_u32() & 4095));
	}
	return false;
}

/* Set an entry in the LRU, in place where there is one. absent: it was looked for just now, and is not there. */
INLINE bool F(put_recent)(const struct F(flow_key) * key, const struct F(flow) * flow, bool absent)
{
	struct F(flow) *found = absent ? NULL : bpf_map_lookup_elem(F(map_recent), (void *)key);

	if (found) {
		*found = *flow;
		return true;
	}
	return !bpf_map_update_elem(F(map_recent), (void *)key, (void *)flow, BPF_ANY);
}

/* The same in the hash. False: it is full. */
INLINE bool F(put_established)(const struct F(flow_key) * key, const struct F(flow) * flow)
{
	struct F(flow) *found = bpf_map_lookup_elem(F(map_flows), (void *)key);

	if (found) {
		*found = *flow;
		return true;
	}
	return !bpf_map_update_elem(F(map_flows), (void *)key, (void *)flow, BPF_NOEXIST);
}

/* The entry for replies, made from the one for the client's packets. */
INLINE void F(make_reply)(struct F(flow) * back, const struct F(flow_key) * key, const struct F(flow) * flow)
{
	F(reverse)(&back->becomes, &key->tuple);
	back->seen = flow->seen;
	back->flags = FLOW_REPLY | (flow->flags & FLOW_BOUNCE);
}

/*
 * Begin a flow: `flow->becomes` has the backend; the source address and port are decided here. False: it can't be.
 * The reply's entry comes first, for a packet that is sent must find its way back.
 */
INLINE bool F(begin)(const struct F(flow_key) * key, struct F(flow) * flow, u32 now, bool absent)
{
	struct F(flow_key) reply;
	struct F(flow) back = {};
	bool reply_absent = false;

	flow->becomes.sport = key->tuple.sport;
	flow->seen = now;
	if (!F(find_port)(key, flow, &reply, now, &reply_absent))
		return false;
	F(make_reply)(&back, key, flow);
	return F(put_recent)(&reply, &back, reply_absent) && F(put_recent)(key, flow, absent);
}

#if !LRP_NEW_FLOWS
/*
 * A SYN or datagram that is not redirected here any more, though perhaps its socket was, and it goes to a backend that
 * flows of ours go to. If its replies would be taken for another flow's, it begins one of its own, which leads where it
 * leads anyway. (While the level serves, backends' own addresses are frontends, which see to that.)
 * False: there is no need, or no way.
 */
INLINE bool F(stands_aside)(const struct F(packet) * p, struct F(flow) * flow, u32 now)
{
	struct F(flow_key) reply;
	struct F(tuple) back;

	F(copy_ip)(flow->becomes.saddr, p->key.tuple.saddr);
	F(copy_ip)(flow->becomes.daddr, p->key.tuple.daddr);
	flow->becomes.sport = p->key.tuple.sport;
	flow->becomes.dport = p->key.tuple.dport;
	flow->flags = FLOW_OFF_LINK; /* it is addressed as it should be */
	F(reverse)(&back, &p->key.tuple);
	F(other_key)(&reply, &p->key, flow);
	if (!F(is_marked)(&reply, &back))
		return false;
	flow->isn = p->seq;
	flow->index = 0;
	return F(begin)(&p->key, flow, now, false);
}
#endif

/* Later fragments carry no ports: remember for them what became of the first. */
INLINE void F(note_fragment)(const struct F(packet) * p, const struct F(flow) * flow)
{
	struct F(flow_key) key = p->key;

	key.tuple.sport = p->id;
	key.tuple.dport = p->id >> 16;
	/* A lost entry costs a datagram; its sender will not wait for it longer than for one lost on the way. */
	bpf_map_update_elem(F(map_fragments), &key, (void *)flow, BPF_ANY);
}

/* The first piece of a datagram was not changed: nor are the others to be, whatever was sent before under their number. */
INLINE void F(forget_fragment)(const struct F(packet) * p)
{
	struct F(flow_key) key = p->key;

	key.tuple.sport = p->id;
	key.tuple.dport = p->id >> 16;
	bpf_map_delete_elem(F(map_fragments), &key);
}

/* What passes untouched. */
INLINE int F(pass)(const struct F(packet) * p)
{
	if (p->part == FIRST_FRAGMENT)
		F(forget_fragment)(p);
	return TC_NEXT;
}

#undef PLAIN_L4
#if FAMILY == 4
#define PLAIN_L4 (ETH_LENGTH + IP4_LENGTH)
#else
#define PLAIN_L4 (ETH_LENGTH + IP6_LENGTH)
#endif

/* Whether the kernel's part in the checksum shows: a difference of zero changes nothing. */
INLINE bool F(is_plain)(const struct F(packet) * p, const struct F(tuple) * to, u32 change)
{
	u32 before = port_word(p->key.tuple.sport, p->key.tuple.dport), after = port_word(to->sport, to->dport);
	u32 shown = FAMILY == 4 ? change : folded(difference(change, before, after));

	return p->part == WHOLE && p->l4 == PLAIN_L4 && (folded_to_half(shown) + 1) & 0xfffe;
}

/*
 * The same for a whole packet without options or extension headers: written where it lies, with one call, since only the
 * kernel knows what the checksum field holds, and it tells by what it does with it. A sum that the device is to complete
 * covers the pseudo-header alone.
 */
INLINE bool F(write_plain)(struct __sk_buff *skb, const struct F(packet) * p, const struct F(tuple) * to, u32 change)
{
	u32 before = port_word(p->key.tuple.sport, p->key.tuple.dport), after = port_word(to->sport, to->dport);
	u32 ports = folded(difference(0, before, after));
	bool is_tcp = p->key.protocol == IPPROTO_TCP;
	u32 at = PLAIN_L4 + (is_tcp ? TCP_CHECK : UDP_CHECK);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__sum16 *check;
	u16 old, new;

	if (data + PLAIN_L4 + UDP_LENGTH > end)
		return false;
	check = data + PLAIN_L4 + UDP_CHECK;
	if (is_tcp) {
		if (data + PLAIN_L4 + TCP_LENGTH > end)
			return false;
		check = data + PLAIN_L4 + TCP_CHECK;
	}
	old = *check;
	*(u32 *)(data + PLAIN_L4) = after;
#if FAMILY == 4
	{
		struct ip4_header *ip = data + ETH_LENGTH;

		ip->check = ~folded_to_half((u64)(u16)~ip->check + change);
		ip->saddr = to->saddr[0];
		ip->daddr = to->daddr[0];
	}
	if (bpf_l4_csum_replace(skb, at, 0, change, PSEUDO_HEADER | (is_tcp ? 0 : KEEP_ZERO)))
		return false;
	if (before == after)
		return true;
#else
	{
		struct ip6_header *ip = data + ETH_LENGTH;

		copy_ip6(ip->saddr, to->saddr);
		copy_ip6(ip->daddr, to->daddr);
	}
	if (bpf_l4_csum_replace(skb, at, 0, folded((u64)change + ports), is_tcp ? 0 : KEEP_ZERO))
		return false;
#endif
	if (!is_tcp && !old)
		return true;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + PLAIN_L4 + UDP_LENGTH > end)
		return false;
	check = data + PLAIN_L4 + UDP_CHECK;
	if (is_tcp) {
		if (data + PLAIN_L4 + TCP_LENGTH > end)
			return false;
		check = data + PLAIN_L4 + TCP_CHECK;
	}
	new = *check;
#if FAMILY == 4
	if (folded_to_half((u64)old + change) == folded_to_half(new))
		return true; /* added: to be completed */
	new = ~folded_to_half((u64)(u16) ~new + ports);
	if (!is_tcp && !new)
		new = 0xffff;
#else
	if (new != old)
		return true;
	new = folded_to_half((u64)old + change); /* left alone: to be completed */
#endif
	*check = new;
	return true;
}

/* Give a packet the addresses and ports that it becomes, and send it on its way. */
INLINE int F(rewrite)(struct __sk_buff *skb, const struct F(packet) * p, const struct F(flow) * flow)
{
	const struct F(tuple) *to = &flow->becomes;
	u32 change, check;

	if (F(same_tuple)(&p->key.tuple, to) && p->part != LATER_FRAGMENT)
		return F(pass)(p);
	if (p->part == FIRST_FRAGMENT)
		F(note_fragment)(p, flow);
	change = F(address_difference)(&p->key.tuple, to);
	if (F(is_plain)(p, to, change))
		return F(write_plain)(skb, p, to, change) ? send_on(skb, flow->flags, flow->mac) : TC_DROP;
	if (!F(write_addresses)(skb, ETH_LENGTH, to, change, RECOMPUTE_CHECKSUM))
		return TC_DROP;
	if (p->part != LATER_FRAGMENT) {
		check = p->l4 + (p->key.protocol == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK);
		if (bpf_l4_csum_replace(skb, check, 0, change,
					PSEUDO_HEADER | (p->key.protocol == IPPROTO_UDP ? KEEP_ZERO : 0)) ||
		    !write_ports(skb, p->l4, p->key.protocol, to->sport, to->dport,
				 port_word(p->key.tuple.sport, p->key.tuple.dport)))
			return TC_DROP;
	}
	return send_on(skb, flow->flags, flow->mac);
}

/* A later fragment: its key has the datagram's identification for ports. */
INLINE enum verdict F(find_fragment)(struct F(packet) * p, struct F(flow) * becomes)
{
	struct F(flow) * first;

	p->key.tuple.sport = p->id;
	p->key.tuple.dport = p->id >> 16;
	first = bpf_map_lookup_elem(F(map_fragments), &p->key);
	if (!first)
		return PASS;
	*becomes = *first;
	return TRANSLATE;
}

/* Is this the entry of the packets that answer those with `tuple`? Another flow may have come in its place. */
INLINE bool F(is_of_reverse)(const struct F(flow) * flow, const struct F(tuple) * tuple)
{
	struct F(tuple) to;

	F(reverse)(&to, tuple);
	return F(leads_to)(flow, &to);
}

/* TCP: note an end in both entries, for either may be the one that is looked at. */
INLINE void F(note_end)(const struct F(packet) * p, struct F(flow) * flow)
{
	u8 mark = p->flags & TCP_RST ? FLOW_RESET : flow->flags & FLOW_REPLY ? FLOW_FIN_BACK : FLOW_FIN_SENT;
	struct F(flow_key) key;
	struct F(flow) * other;

	flow->flags |= mark;
	F(other_key)(&key, &p->key, flow);
	other = bpf_map_lookup_elem(F(map_flows), &key);
	if (other && F(is_of_reverse)(other, &p->key.tuple))
		other->flags |= mark;
}

/* TCP: the backend has answered a SYN. The connection moves to where it is safe. STRANGE: it was not the last SYN. */
INLINE enum establishing F(establish)(const struct F(flow_key) * key, struct F(flow) * back)
{
	struct F(flow_key) forward;
	struct F(flow) * found, copy;
	struct F(tuple) to;

	F(other_key)(&forward, key, back);
	F(reverse)(&to, &key->tuple);
	found = bpf_map_lookup_elem(F(map_recent), &forward);
	if (!found || !F(leads_to)(found, &to))
		return STRANGE;
	found->seen = back->seen;
	copy = *found;
	if (F(put_established)(&forward, &copy)) {
		copy = *back;
		if (F(put_established)(key, &copy))
			return ESTABLISHED;
		bpf_map_delete_elem(F(map_flows), &forward);
	}
	/* The client will send its SYN again, which then passes untouched; until then the backend's answers are lost. */
	found->flags |= FLOW_RESET;
	back->flags |= FLOW_RESET;
	return FULL;
}

/* TCP: the answer to a SYN, or a reset that comes instead. */
INLINE enum verdict F(answer)(const struct F(packet) * p, struct F(flow) * becomes, u32 now)
{
	struct F(flow) *back = bpf_map_lookup_elem(F(map_recent), (void *)&p->key);
	enum establishing outcome;

	if (!back || !(back->flags & FLOW_REPLY) || back->flags & FLOW_TAKEN || !F(is_alive)(back, IPPROTO_TCP, now))
		return PASS;
	if (back->flags & FLOW_RESET)
		return DROP;
	back->seen = now;
	if (p->flags & TCP_SYN) {
		outcome = F(establish)(&p->key, back);
		if (outcome == FULL)
			count(0, ACTION_FAILED);
		if (outcome != ESTABLISHED)
			return DROP;
	}
	*becomes = *back;
	return TRANSLATE;
}

/*
 * Client and backend on one bridge: replies go from one to the other and never reach the node's IP layer. So requests must
 * not either, or the node's conntrack would see half a connection. The packet is addressed to the bridge, as the pod's
 * gateway; where the way to the backend begins at that very hardware address, the backend is on that bridge.
 *
 * The node may not know the backend's hardware address yet. Then the SYN goes by the node's IP layer, which asks for it,
 * and the next packet looks again.
 */
INLINE void F(find_on_link)(struct __sk_buff *skb, const struct F(packet) * p, struct F(flow) * flow)
{
	struct bpf_fib_lookup way = {
	    .family = FAMILY == 4 ? AF_INET : AF_INET6,
	    .l4_protocol = p->key.protocol,
	    .ifindex = p->key.ifindex,
	};
	struct eth_header eth;

#if FAMILY == 4
	way.ipv4_src = *p->key.tuple.saddr;
	way.ipv4_dst = *flow->becomes.daddr;
#else
	copy_ip6(way.ipv6_src, p->key.tuple.saddr);
	copy_ip6(way.ipv6_dst, flow->becomes.daddr);
#endif
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || bpf_fib_lookup(skb, &way, sizeof(way), 0))
		return;
	if (hardware_differs(way.smac, eth.to)) {
		flow->flags |= FLOW_OFF_LINK;
		return;
	}
	flow->flags |= FLOW_ON_LINK;
	__builtin_memcpy(flow->mac, way.dmac, sizeof(flow->mac));
}

/* TCP: a SYN of a flow passes. */
INLINE void F(note_asking)(const struct F(flow_key) * key, const struct F(flow) * flow, u32 now)
{
	u32 mark = mark_of(key->tuple.sport, key->tuple.dport, key->ifindex);
	u32 back = mark_of(flow->becomes.sport, flow->becomes.dport, key->ifindex);

	leave_mark(mark, now);
	if (back != mark)
		leave_mark(back, now);
}

/* Whether a backend's packet has nothing to do with a SYN: data may overtake the answer to it (TCP Fast Open). */
INLINE bool F(tells_of_another)(struct __sk_buff *skb, const struct F(packet) * p, const struct F(flow) * forward)
{
	__be32 ack;

	if ((p->flags & (TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK ||
	    bpf_skb_load_bytes(skb, p->l4 + TCP_ACKNOWLEDGED, &ack, sizeof(ack)))
		return false;
	return bpf_ntohl(ack) - bpf_ntohl(forward->isn) - 1 > 0xffff;
}

/* TCP: a packet of no connection that was answered. It may tell that the ports of one that was not yet are taken. */
INLINE enum verdict F(interject)(struct __sk_buff *skb, const struct F(packet) * p, struct F(flow) * becomes, u32 now)
{
	struct F(flow) *flow = NULL, *forward;
	struct F(flow_key) key;

	if (finds_mark(mark_of(p->key.tuple.sport, p->key.tuple.dport, p->key.ifindex), now))
		flow = bpf_map_lookup_elem(F(map_recent), (void *)&p->key);
	if (!flow || flow->flags & FLOW_RESET || !F(is_alive)(flow, IPPROTO_TCP, now) ||
	    F(leads_to)(flow, &p->key.tuple))
		return PASS;
	if (!(flow->flags & FLOW_REPLY))
		return flow->flags & FLOW_TAKEN && p->flags & TCP_RST ? DROP : PASS;
	if (flow->flags & FLOW_TAKEN)
		return PASS;
	F(other_key)(&key, &p->key, flow);
	forward = bpf_map_lookup_elem(F(map_recent), &key);
	if (!forward || !F(is_of_reverse)(forward, &p->key.tuple) || !F(tells_of_another)(skb, p, forward))
		return PASS;
	forward->flags |= FLOW_TAKEN;
	*becomes = *flow;
	flow->flags |= FLOW_TAKEN;
	return TRANSLATE;
}

/* TCP: a packet of a connection that was answered. bridged: it comes by the port of a bridge. */
INLINE enum verdict F(go_on)(struct __sk_buff *skb, const struct F(packet) * p, struct F(flow) * becomes, bool bridged,
			     u32 now)
{
	struct F(flow) *flow = bpf_map_lookup_elem(F(map_flows), (void *)&p->key);
	enum verdict verdict = PASS;

	if (!flow || F(is_over)(flow, now))
		verdict = F(interject)(skb, p, becomes, now);
	if (!flow || verdict != PASS)
		return verdict;
	if (bridged && !(flow->flags & (FLOW_ON_LINK | FLOW_OFF_LINK | FLOW_BOUNCE)))
		F(find_on_link)(skb, p, flow);
	if (p->flags & (TCP_FIN | TCP_RST))
		F(note_end)(p, flow);
	if (flow->seen != now)
		flow->seen = now;
	*becomes = *flow;
	return TRANSLATE;
}

/* UDP: an answer. */
INLINE enum verdict F(answer_datagram)(const struct F(packet) * p, struct F(flow) * becomes, u32 now)
{
	struct F(flow) *back = bpf_map_lookup_elem(F(map_recent), (void *)&p->key);

	if (!back || !(back->flags & FLOW_REPLY) || !F(is_alive)(back, IPPROTO_UDP, now))
		return PASS;
	if (back->seen != now)
		back->seen = now;
	*becomes = *back;
	return TRANSLATE;
}

/* Whether a known flow's replies are still its own, and for longer; looked at once in each unit of time. */
INLINE bool F(is_answerable)(const struct F(flow_key) * key, struct F(flow) * flow, u32 now)
{
	struct F(flow_key) reply;
	struct F(flow) back = {}, *found;

	if (flow->seen == now)
		return true;
	F(other_key)(&reply, key, flow);
	F(make_reply)(&back, key, flow);
	back.seen = now;
	found = bpf_map_lookup_elem(F(map_recent), &reply);
	if (found ? !F(leads_to)(found, &back.becomes) : !F(put_recent)(&reply, &back, true))
		return false;
	if (found)
		found->seen = now;
	flow->seen = now;
	return true;
}
