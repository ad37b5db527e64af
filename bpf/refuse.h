/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC level: what is sent to a frontend that has no backend is refused at once, in the frontend's name.
 *
 * A TCP connect gets a RST. The packet itself becomes it: both ends change places, which leaves the checksum as it is,
 * and so do options and data, which nobody reads in a RST. (An ICMP error would be in vain: it arrives while connect(2)
 * holds the socket, and the kernel then lets it go by.)
 *
 * A datagram gets an ICMP error "port unreachable". It is cut down to what that quotes, its headers; then room is made in
 * front, exactly as much as a new IP and ICMP header need.
 */
#ifndef LRP_REFUSE_H
#define LRP_REFUSE_H

#define PORT_UNREACHABLE4 3, 3 /* type, code */
#define PORT_UNREACHABLE6 1, 4

struct icmp_header {
	u8 type;
	u8 code;
	__sum16 check;
	u32 unused;
};

struct refusal4 {
	struct ip4_header ip;
	struct icmp_header icmp;
};

struct refusal6 {
	struct ip6_header ip;
	struct icmp_header icmp;
};

/* The checksum of headers that the kernel helper can sum up: a multiple of four bytes. */
INLINE __sum16 checksum(void *bytes, u32 length, u32 sum)
{
	u32 total = bpf_csum_diff(NULL, 0, bytes, length, sum);

	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	return ~total;
}

/* The sum of an ICMP header of which only type and code are set. */
INLINE u32 sum_of_type(const struct icmp_header *icmp)
{
	return (u32)icmp->code << 8 | icmp->type;
}

/* Cut a packet down to `quoted` bytes of headers, put an IP and an ICMP header before them, and send it back. */
INLINE int send_refusal(struct __sk_buff *skb, u32 quoted, void *head, u32 length)
{
	struct eth_header eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return TC_DROP;
	if (bpf_skb_change_tail(skb, ETH_LENGTH + quoted, 0) || bpf_skb_change_head(skb, length, 0) ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) || bpf_skb_store_bytes(skb, ETH_LENGTH, head, length, 0))
		return TC_DROP;
	return bounce(skb);
}

/* Turn a SYN into the RST that answers it, but for the addresses. */
INLINE bool answer_with_reset(struct __sk_buff *skb, u32 l4)
{
	struct {
		__be16 sport;
		__be16 dport;
		__be32 seq;
		__be32 ack;
		__be32 flags;
	} old, new;
	u64 sum = 0;

	if (bpf_skb_load_bytes(skb, l4, &old, sizeof(old)))
		return false;
	new.sport = old.dport;
	new.dport = old.sport;
	new.seq = 0;
	new.ack = bpf_htonl(bpf_htonl(old.seq) + 1);
	/* The header's length stays; no window. */
	new.flags = (old.flags & bpf_htonl(0xf0000000)) | bpf_htonl((u32)(TCP_RST | TCP_ACK) << 16);
	sum = difference(difference(difference(sum, old.seq, new.seq), old.ack, new.ack), old.flags, new.flags);
	return !bpf_l4_csum_replace(skb, l4 + TCP_CHECK, 0, folded(sum), 0) &&
	       !bpf_skb_store_bytes(skb, l4, &new, sizeof(new), 0);
}

INLINE int refuse_tcp4(struct __sk_buff *skb, const struct packet4 *p)
{
	__be32 swapped[2] = {p->key.tuple.daddr[0], p->key.tuple.saddr[0]};

	if (!answer_with_reset(skb, p->l4) ||
	    bpf_skb_store_bytes(skb, ETH_LENGTH + IP4_ADDRESSES, swapped, sizeof(swapped), 0))
		return TC_DROP;
	return bounce(skb);
}

INLINE int refuse_tcp6(struct __sk_buff *skb, const struct packet6 *p)
{
	struct {
		__be32 saddr[4];
		__be32 daddr[4];
	} swapped;

	copy_ip6(swapped.saddr, p->key.tuple.daddr);
	copy_ip6(swapped.daddr, p->key.tuple.saddr);
	if (!answer_with_reset(skb, p->l4) ||
	    bpf_skb_store_bytes(skb, ETH_LENGTH + IP6_ADDRESSES, &swapped, sizeof(swapped), 0))
		return TC_DROP;
	return bounce(skb);
}

INLINE int refuse4(struct __sk_buff *skb, const struct packet4 *p)
{
	struct refusal4 head = {.icmp = {PORT_UNREACHABLE4}};
	u8 quote[IP4_LENGTH + UDP_LENGTH];

	if (p->key.protocol == IPPROTO_TCP)
		return refuse_tcp4(skb, p);
	/* With options in its header, or in pieces, it is dropped. */
	if (p->l4 != ETH_LENGTH + IP4_LENGTH || p->part != WHOLE ||
	    bpf_skb_load_bytes(skb, ETH_LENGTH, quote, sizeof(quote)))
		return TC_DROP;
	head.icmp.check = checksum(quote, sizeof(quote), sum_of_type(&head.icmp));
	head.ip.version_length = 0x45;
	head.ip.total = bpf_htons(IP4_LENGTH + ICMP_LENGTH + sizeof(quote));
	head.ip.ttl = 64;
	head.ip.protocol = IPPROTO_ICMP;
	head.ip.saddr = p->key.tuple.daddr[0];
	head.ip.daddr = p->key.tuple.saddr[0];
	head.ip.check = checksum(&head.ip, sizeof(head.ip), 0);
	return send_refusal(skb, sizeof(quote), &head, sizeof(head));
}

INLINE int refuse6(struct __sk_buff *skb, const struct packet6 *p)
{
	struct refusal6 head = {.icmp = {PORT_UNREACHABLE6}};
	u8 quote[IP6_LENGTH + UDP_LENGTH];
	u32 sum;

	if (p->key.protocol == IPPROTO_TCP)
		return refuse_tcp6(skb, p);
	if (p->l4 != ETH_LENGTH + IP6_LENGTH || p->part != WHOLE ||
	    bpf_skb_load_bytes(skb, ETH_LENGTH, quote, sizeof(quote)))
		return TC_DROP;
	head.ip.version_flow = bpf_htonl(0x60000000);
	head.ip.payload = bpf_htons(ICMP_LENGTH + sizeof(quote));
	head.ip.next = IPPROTO_ICMPV6;
	head.ip.hops = 64;
	copy_ip6(head.ip.saddr, p->key.tuple.daddr);
	copy_ip6(head.ip.daddr, p->key.tuple.saddr);
	/* The pseudo-header: both addresses, the length, the protocol. */
	sum = bpf_csum_diff(NULL, 0, head.ip.saddr, 2 * sizeof(head.ip.saddr), sum_of_type(&head.icmp));
	sum = folded((u64)sum + head.ip.payload + bpf_htons(IPPROTO_ICMPV6));
	head.icmp.check = checksum(quote, sizeof(quote), sum);
	return send_refusal(skb, sizeof(quote), &head, sizeof(head));
}

#endif
