/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC level: giving a packet other addresses and ports, with checksums that go along.
 *
 * Checksums are updated by differences, through the kernel's helpers, for only they know what a checksum field holds:
 * that of a packet yet to be completed by its device (partial checksums, GSO) covers the pseudo-header alone. Hence two
 * steps: addresses, which are in the pseudo-header, and ports, which are not. A UDP datagram without one stays without.
 *
 * Once a packet is half changed it can't be given back: where the kernel can't go on (no memory), it is dropped.
 */
#ifndef LRP_REWRITE_H
#define LRP_REWRITE_H

#define PSEUDO_HEADER 0x10     /* BPF_F_PSEUDO_HDR */
#define KEEP_ZERO 0x20	       /* BPF_F_MARK_MANGLED_0: no checksum stays none */
#define RECOMPUTE_CHECKSUM 0x1 /* BPF_F_RECOMPUTE_CSUM */

#define TCP_ACKNOWLEDGED 8
#define TCP_CHECK 16
#define UDP_CHECK 6
#define IP4_CHECK 10
#define IP4_ADDRESSES 12
#define IP6_ADDRESSES 8

/* Add to a ones' complement sum what changes when `before` becomes `after`. */
INLINE u64 difference(u64 sum, u32 before, u32 after)
{
	return sum + (u32)~before + after;
}

INLINE u32 folded(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* A ones' complement sum in 16 bits. */
INLINE u16 folded_to_half(u64 sum)
{
	u32 half = folded(sum);

	half = (half & 0xffff) + (half >> 16);
	return (half & 0xffff) + (half >> 16);
}

INLINE u32 address_difference4(const struct tuple4 *before, const struct tuple4 *after)
{
	return folded(difference(difference(0, *before->saddr, *after->saddr), *before->daddr, *after->daddr));
}

INLINE u32 address_difference6(const struct tuple6 *before, const struct tuple6 *after)
{
	u64 sum = 0;

	sum = difference(sum, before->saddr[0], after->saddr[0]);
	sum = difference(sum, before->saddr[1], after->saddr[1]);
	sum = difference(sum, before->saddr[2], after->saddr[2]);
	sum = difference(sum, before->saddr[3], after->saddr[3]);
	sum = difference(sum, before->daddr[0], after->daddr[0]);
	sum = difference(sum, before->daddr[1], after->daddr[1]);
	sum = difference(sum, before->daddr[2], after->daddr[2]);
	sum = difference(sum, before->daddr[3], after->daddr[3]);
	return folded(sum);
}

/* A word as the ports lie in it, source first. */
INLINE u32 port_word(__be16 sport, __be16 dport)
{
	return (u32)dport << 16 | sport;
}

/*
 * Write the addresses of an IP header that begins at `offset`; IPv4's own checksum goes along.
 *
 * IPv6's header has none. So a device's sum over the whole packet changes with the addresses, which `summed`
 * (RECOMPUTE_CHECKSUM) sees to: the helper for the layer 4 checksum takes it for granted, as in IPv4, that it does not.
 */
INLINE bool write_addresses4(struct __sk_buff *skb, u32 offset, const struct tuple4 *to, u32 change, u64 summed)
{
	return !bpf_l3_csum_replace(skb, offset + IP4_CHECK, 0, change, 0) &&
	       !bpf_skb_store_bytes(skb, offset + IP4_ADDRESSES, (void *)to->saddr, 2 * sizeof(to->saddr), 0);
}

INLINE bool write_addresses6(struct __sk_buff *skb, u32 offset, const struct tuple6 *to, u32 change, u64 summed)
{
	return !bpf_skb_store_bytes(skb, offset + IP6_ADDRESSES, (void *)to->saddr, 2 * sizeof(to->saddr), summed);
}

INLINE bool write_ports(struct __sk_buff *skb, u32 l4, u8 protocol, __be16 sport, __be16 dport, u32 before)
{
	u32 after = port_word(sport, dport), check = l4 + (protocol == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK);

	if (before == after)
		return true;
	return !bpf_l4_csum_replace(skb, check, 0, folded(difference(0, before, after)),
				    protocol == IPPROTO_UDP ? KEEP_ZERO : 0) &&
	       !bpf_skb_store_bytes(skb, l4, &after, sizeof(after), 0);
}

INLINE bool hardware_differs(const u8 *a, const u8 *b)
{
	return (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]);
}

/* Swap the hardware addresses and send a packet back through the link that it came by. */
INLINE int bounce(struct __sk_buff *skb)
{
	u8 pair[12], swapped[12];

	if (bpf_skb_load_bytes(skb, 0, pair, sizeof(pair)))
		return TC_DROP;
	__builtin_memcpy(swapped, pair + 6, 6);
	__builtin_memcpy(swapped + 6, pair, 6);
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return TC_DROP;
	return bpf_redirect(skb->ifindex, 0);
}

/* Send a translated packet on its way; flags, mac: of its flow. */
INLINE int send_on(struct __sk_buff *skb, u8 flags, const u8 *mac)
{
	if (flags & FLOW_BOUNCE)
		return bounce(skb);
	if (flags & FLOW_ON_LINK && bpf_skb_store_bytes(skb, 0, (void *)mac, 6, 0))
		return TC_DROP;
	return TC_NEXT;
}

#endif
