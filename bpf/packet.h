/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC level: what a packet is. `parse4` and `parse6` fill a flow key from its headers, or answer false: then it is
 * left alone. That is so for whatever does not add up (lengths beyond the packet, a header cut short), for VLANs, and
 * for what could not be translated honestly (authenticated headers, source routes).
 *
 * Headers are read where they lie when they lie in the packet's first piece, which is pulled together otherwise.
 */
#ifndef LRP_PACKET_H
#define LRP_PACKET_H

#define ETH_LENGTH 14
#define IP4_LENGTH 20
#define IP6_LENGTH 40
#define TCP_LENGTH 20
#define UDP_LENGTH 8
#define ICMP_LENGTH 8

#define ETH_IP4 bpf_htons(0x0800)
#define ETH_IP6 bpf_htons(0x86dd)

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct eth_header {
	u8 to[6];
	u8 from[6];
	__be16 protocol;
} __attribute__((packed));

struct ip4_header {
	u8 version_length;
	u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ip6_header {
	u32 version_flow;
	__be16 payload;
	u8 next;
	u8 hops;
	__be32 saddr[4];
	__be32 daddr[4];
};

/* The start of TCP's and UDP's headers; what UDP has not is not read for it. */
struct l4_header {
	__be16 sport;
	__be16 dport;
	union {
		__be32 seq;
		struct {
			__be16 length;
			__sum16 check;
		} udp;
	};
	__be32 ack;
	u8 length; /* of TCP's header, in its upper half, in words */
	u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

enum part {
	WHOLE,
	FIRST_FRAGMENT, /* has the ports */
	LATER_FRAGMENT, /* has none: the key has the datagram's identification instead */
};

/*
 * l4: where the layer 4 header begins, from the start of the packet. seq, flags: TCP's. type, end: ICMP's type, and where
 * the packet ends. id: a fragmented datagram's identification.
 */
struct packet4 {
	struct flow_key4 key;
	__be32 seq;
	u32 l4;
	u32 end;
	u32 id;
	u8 flags;
	u8 part;
	u8 type;
	u8 pad;
};

struct packet6 {
	struct flow_key6 key;
	__be32 seq;
	u32 l4;
	u32 end;
	u32 id;
	u8 flags;
	u8 part;
	u8 type;
	u8 pad;
};

/*
 * What a program works on, in memory of its CPU's own rather than on the stack: of a map's contents the verifier assumes
 * nothing, and so need not walk what follows once for each thing that it knows.
 */
struct work4 {
	struct packet4 p;
	struct clock clock;
	struct run run;
	struct flow4 becomes;
};

struct work6 {
	struct packet6 p;
	struct clock clock;
	struct run run;
	struct flow6 becomes;
};

/* What is to be done with a packet; and of the answer to a SYN, whether there was a place for the connection. */
enum verdict { PASS, TRANSLATE, REFUSE, DROP };
enum establishing { ESTABLISHED, STRANGE, FULL };

/* Have the first bytes of a packet in one piece. The caller reads `data` and `data_end` anew. */
INLINE bool pull(struct __sk_buff *skb, u32 length)
{
	return length <= skb->len && !bpf_skb_pull_data(skb, length);
}

/* Of a super-packet the IP header's length says 0 when it does not fit there. */
INLINE bool is_super_packet(struct __sk_buff *skb)
{
	return skb->gso_size != 0;
}

/*
 * Read the layer 4 header, at `l4`. room: how many bytes the IP header leaves for it and its payload.
 * A TCP header is `room` bytes at most, a UDP datagram too; a first fragment has only a part of its datagram.
 */
#define PARSE_L4(skb, p, protocol, l4, room)                                                                           \
	do {                                                                                                           \
		u32 length_ = (protocol) == IPPROTO_TCP ? TCP_LENGTH : UDP_LENGTH;                                     \
		void *data_ = (void *)(long)(skb)->data, *end_ = (void *)(long)(skb)->data_end;                        \
		struct l4_header *h_ = data_ + (l4);                                                                   \
                                                                                                                       \
		if ((room) < length_)                                                                                  \
			return false;                                                                                  \
		if ((void *)h_ + length_ > end_) {                                                                     \
			if (!pull(skb, (l4) + length_))                                                                \
				return false;                                                                          \
			data_ = (void *)(long)(skb)->data;                                                             \
			end_ = (void *)(long)(skb)->data_end;                                                          \
			h_ = data_ + (l4);                                                                             \
		}                                                                                                      \
		if ((void *)h_ + UDP_LENGTH > end_)                                                                    \
			return false;                                                                                  \
		(p)->key.tuple.sport = h_->sport;                                                                      \
		(p)->key.tuple.dport = h_->dport;                                                                      \
		if ((protocol) == IPPROTO_TCP) {                                                                       \
			if ((void *)h_ + TCP_LENGTH > end_ || h_->length < 0x50 || (h_->length >> 4) * 4 > (room))     \
				return false;                                                                          \
			(p)->flags = h_->flags;                                                                        \
			(p)->seq = h_->seq;                                                                            \
			return true;                                                                                   \
		}                                                                                                      \
		(p)->seq = 0;                                                                                          \
		length_ = bpf_htons(h_->udp.length);                                                                   \
		return length_ >= UDP_LENGTH && ((p)->part != WHOLE || is_super_packet(skb) || length_ <= (room));     \
	} while (0)

/* ICMP: its type, and where the packet ends. What it quotes is read when it is known to be an error (icmp.h). */
INLINE bool parse_icmp(struct __sk_buff *skb, u8 part, u32 l4, u32 room, u32 *end, u8 *type)
{
	*end = l4 + room;
	return room >= ICMP_LENGTH && part == WHOLE && !bpf_skb_load_bytes(skb, l4, type, 1);
}

/* Whether options in an IPv4 header name hops to come: then its destination is not the last one. */
INLINE bool is_source_routed(struct __sk_buff *skb, u32 length)
{
	u32 at = IP4_LENGTH;
	u8 option[2]; /* its kind, and the length of all of it */
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < 40; i++) {
		if (at >= length || bpf_skb_load_bytes(skb, ETH_LENGTH + at, option, sizeof(option)) || !option[0])
			return false;
		if (option[0] == 0x83 || option[0] == 0x89)
			return true;
		if (option[0] != 1 && option[1] < 2)
			return false;
		at += option[0] == 1 ? 1 : option[1];
	}
	return false;
}

INLINE bool parse4(struct __sk_buff *skb, struct packet4 *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip4_header *ip = data + ETH_LENGTH;
	u32 length, total, offset, l4;
	u8 protocol;

	if ((void *)(ip + 1) > end) {
		if (!pull(skb, ETH_LENGTH + IP4_LENGTH))
			return false;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + ETH_LENGTH;
		if ((void *)(ip + 1) > end)
			return false;
	}
	length = (ip->version_length & 15) * 4;
	total = bpf_htons(ip->total);
	if (!total && is_super_packet(skb))
		total = skb->len - ETH_LENGTH;
	if (ip->version_length >> 4 != 4 || length < IP4_LENGTH || total < length || total > skb->len - ETH_LENGTH)
		return false;
	total -= length;
	offset = bpf_htons(ip->fragment);
	p->part = offset & 0x1fff ? LATER_FRAGMENT : offset & 0x2000 ? FIRST_FRAGMENT : WHOLE;
	p->id = ip->id;
	l4 = ETH_LENGTH + length;
	p->l4 = l4;
	p->key.tuple.saddr[0] = ip->saddr;
	p->key.tuple.daddr[0] = ip->daddr;
	protocol = ip->protocol;
	p->key.protocol = protocol;
	if (length > IP4_LENGTH && is_source_routed(skb, length))
		return false;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return protocol == IPPROTO_ICMP && parse_icmp(skb, p->part, l4, total, &p->end, &p->type);
	if (p->part == LATER_FRAGMENT)
		return true;
	PARSE_L4(skb, p, protocol, l4, total);
}

#define IP6_HOP_BY_HOP 0
#define IP6_ROUTING 43
#define IP6_FRAGMENT 44
#define IP6_DESTINATION 60

/*
 * Go through extension headers; `next` becomes the upper protocol, `l4` its place. False: not to be followed.
 * p->part, p->id are those of a fragment header on the way.
 */
INLINE bool follow_extensions(struct __sk_buff *skb, struct packet6 *p, u8 *next, u32 *l4)
{
	struct {
		u8 next;
		u8 length; /* in 8 bytes, without the first */
		__be16 fragment;
		__be32 id;
	} header;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i <= LRP_EXTENSIONS; i++) {
		if (*next != IP6_HOP_BY_HOP && *next != IP6_ROUTING && *next != IP6_FRAGMENT &&
		    *next != IP6_DESTINATION)
			return true;
		if (p->part != WHOLE || bpf_skb_load_bytes(skb, *l4, &header, sizeof(header)))
			return false;
		if (*next == IP6_ROUTING && header.fragment & bpf_htons(0x00ff))
			return false; /* segments are left: the destination is not the last one */
		if (*next == IP6_FRAGMENT) {
			if (header.fragment & bpf_htons(0xfff8))
				p->part = LATER_FRAGMENT;
			else if (header.fragment & bpf_htons(1))
				p->part = FIRST_FRAGMENT;
			p->id = header.id;
			*l4 += 8;
		} else {
			*l4 += (header.length + 1) * 8;
		}
		*next = header.next;
	}
	return false;
}

INLINE bool parse6(struct __sk_buff *skb, struct packet6 *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip6_header *ip = data + ETH_LENGTH;
	u32 total, l4;
	u8 next;

	if ((void *)(ip + 1) > end) {
		if (!pull(skb, ETH_LENGTH + IP6_LENGTH))
			return false;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + ETH_LENGTH;
		if ((void *)(ip + 1) > end)
			return false;
	}
	total = bpf_htons(ip->payload);
	if (!total && is_super_packet(skb))
		total = skb->len - ETH_LENGTH - IP6_LENGTH;
	if ((ip->version_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
	    total > skb->len - ETH_LENGTH - IP6_LENGTH)
		return false;
	l4 = ETH_LENGTH + IP6_LENGTH;
	copy_ip6(p->key.tuple.saddr, ip->saddr);
	copy_ip6(p->key.tuple.daddr, ip->daddr);
	next = ip->next;
	p->part = WHOLE;
	if (next != IPPROTO_TCP && next != IPPROTO_UDP && next != IPPROTO_ICMPV6 &&
	    !follow_extensions(skb, p, &next, &l4))
		return false;
	/* So many extension headers that they fill the packet. */
	if (l4 > ETH_LENGTH + IP6_LENGTH + total)
		return false;
	total -= l4 - ETH_LENGTH - IP6_LENGTH;
	p->l4 = l4;
	p->key.protocol = next;
	if (next != IPPROTO_TCP && next != IPPROTO_UDP)
		return next == IPPROTO_ICMPV6 && parse_icmp(skb, p->part, l4, total, &p->end, &p->type);
	if (p->part == LATER_FRAGMENT)
		return true;
	PARSE_L4(skb, p, next, l4, total);
}

#endif
