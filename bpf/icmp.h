/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: ICMP errors that quote a packet of a flow (path MTU, unreachable, time exceeded).
 *
 * Whoever sends the error has seen the packet as we made it; whoever gets it knows only the packet as it sent it. The
 * quoted packet went the other way, so what belongs to it is the entry of its answers: the quoted packet, reversed, is
 * looked up, and what that becomes, reversed, is what was sent. The error's own addresses change where they are the
 * flow's; an error of a router in between keeps the router's.
 *
 * The quoted checksums are kept right, as far as they are quoted. Within a quoted IPv4 header the change of the addresses
 * and that of its checksum cancel each other out, so the error's checksum does not change by them.
 */

/* ICMP's own checksum, from the start of its header. */
#define ICMP_CHECK 2

#if FAMILY == 4
INLINE bool is_error4(u8 type)
{
	return type == 3 || type == 4 || type == 11 || type == 12;
}

/* Read the quoted packet's addresses, reversed, into a key. Answers where its layer 4 header begins; 0: no such packet. */
INLINE u32 read_quoted4(struct __sk_buff *skb, u32 at, struct flow_key4 *key)
{
	struct ip4_header ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || (ip.version_length & 15) < 5 ||
	    ip.version_length >> 4 != 4 || ip.fragment & bpf_htons(0x1fff))
		return 0;
	key->tuple.saddr[0] = ip.daddr;
	key->tuple.daddr[0] = ip.saddr;
	key->protocol = ip.protocol;
	return at + (ip.version_length & 15) * 4;
}
#else
INLINE bool is_error6(u8 type)
{
	return type >= 1 && type <= 4;
}

INLINE u32 read_quoted6(struct __sk_buff *skb, u32 at, struct flow_key6 *key)
{
	struct ip6_header ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) ||
	    (ip.version_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return 0;
	copy_ip6(key->tuple.saddr, ip.daddr);
	copy_ip6(key->tuple.daddr, ip.saddr);
	key->protocol = ip.next;
	return at + IP6_LENGTH;
}
#endif

/* The entry of a quoted packet's answers. */
INLINE struct F(flow) * F(flow_of_quoted)(const struct F(flow_key) * key)
{
	struct F(flow) *found = NULL;

	if (key->protocol == IPPROTO_TCP)
		found = bpf_map_lookup_elem(F(map_flows), (void *)key);
	return found ? found : bpf_map_lookup_elem(F(map_recent), (void *)key);
}

/* Change a quoted layer 4 header; `change`: of its addresses. It ends somewhere: a checksum may not be in it. */
INLINE bool F(write_quoted_l4)(struct __sk_buff *skb, const struct F(packet) * p, u32 at, u8 protocol, u32 before,
			       u32 after, u32 change)
{
	u32 check = at + (protocol == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK), icmp = p->l4 + ICMP_CHECK;
	__sum16 old, new;
	u32 sum;

	if (before != after && (bpf_l4_csum_replace(skb, icmp, 0, folded(difference(0, before, after)), 0) ||
				bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0)))
		return false;
	if (check + sizeof(old) > p->end || bpf_skb_load_bytes(skb, check, &old, sizeof(old)))
		return true;
	if (protocol == IPPROTO_UDP && !old)
		return true;
	sum = folded((u64)(u16)~old + folded(difference(change, before, after)));
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	new = ~sum;
	if (protocol == IPPROTO_UDP && !new)
		new = 0xffff;
	return !bpf_l4_csum_replace(skb, icmp, old, new, sizeof(new)) &&
	       !bpf_skb_store_bytes(skb, check, &new, sizeof(new), 0);
}

/* The addresses of the error itself. */
INLINE bool F(write_error)(struct __sk_buff *skb, const struct F(packet) * p, const struct F(tuple) * quoted,
			   const struct F(tuple) * becomes)
{
	struct F(tuple) to = p->key.tuple;
	u32 change;

	if (!F(ip_differs)(to.saddr, quoted->saddr))
		F(copy_ip)(to.saddr, becomes->saddr);
	if (!F(ip_differs)(to.daddr, quoted->daddr))
		F(copy_ip)(to.daddr, becomes->daddr);
	change = F(address_difference)(&p->key.tuple, &to);
	if (!F(write_addresses)(skb, ETH_LENGTH, &to, change, RECOMPUTE_CHECKSUM))
		return false;
	return FAMILY == 4 || !bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECK, 0, change, PSEUDO_HEADER);
}

INLINE int F(translate_error)(struct __sk_buff *skb, const struct F(packet) * p)
{
	struct F(flow_key) key = {.ifindex = p->key.ifindex, .way = p->key.way};
	struct F(tuple) before, after;
	u32 at = p->l4 + ICMP_LENGTH, l4, ports, change;
	struct F(flow) * flow;

	if (!F(is_error)(p->type))
		return TC_NEXT;
	l4 = F(read_quoted)(skb, at, &key);
	if (!l4 || l4 + UDP_LENGTH > p->end || bpf_skb_load_bytes(skb, l4, &ports, sizeof(ports)) ||
	    (key.protocol != IPPROTO_TCP && key.protocol != IPPROTO_UDP))
		return TC_NEXT;
	key.tuple.sport = ports >> 16;
	key.tuple.dport = ports;
	/* Who gets it is who sent what it quotes. */
	if (F(ip_differs)(p->key.tuple.daddr, key.tuple.daddr))
		return TC_NEXT;
	flow = F(flow_of_quoted)(&key);
	if (!flow || F(is_anothers)(flow) || F(same_tuple)(&key.tuple, &flow->becomes))
		return TC_NEXT;
	F(reverse)(&before, &key.tuple);
	F(reverse)(&after, &flow->becomes);
	change = F(address_difference)(&before, &after);
	if (!F(write_addresses)(skb, at, &after, change, 0) ||
	    (FAMILY == 6 && bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECK, 0, change, 0)) ||
	    !F(write_quoted_l4)(skb, p, l4, key.protocol, ports, port_word(after.sport, after.dport), change) ||
	    !F(write_error)(skb, p, &key.tuple, &flow->becomes))
		return TC_DROP;
	return send_on(skb, flow->flags, flow->mac);
}
