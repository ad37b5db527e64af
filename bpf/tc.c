/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The TC level: programs on the node's end of pods' links (veths), for pods whose sockets are left alone.
 *
 * What a pod sends to a frontend is sent to a local backend, with another destination; to the pod, replies come from the
 * frontend again. The node's own IP layer, its firewall and its conntrack see a connection to the backend, and nothing of
 * the frontend. What is no concern of ours is passed to whoever comes next, unchanged.
 */
#include "config.h"
#include "structs.h"
#include "helpers.h"
#include "maps.h"
#include "events.h"
#include "packet.h"
#include "rewrite.h"
#include "refuse.h"

#define loopback4 ((__be32[1]){bpf_htonl(LRP_LOOPBACK4)})
#define IN_NETWORK_ORDER(a, b, c, d) bpf_htonl(a), bpf_htonl(b), bpf_htonl(c), bpf_htonl(d)
#define WORDS(...) IN_NETWORK_ORDER(__VA_ARGS__)
#define loopback6 ((__be32[4]){WORDS(LRP_LOOPBACK6)})

BPF_PERCPU_ARRAY(work_areas4, struct work4, 1);
BPF_PERCPU_ARRAY(work_areas6, struct work6, 1);

/*
 * SYNs of flows that passed last: each leaves a mark of its ports, its link and the time. Almost all packets that are in
 * no table of established connections learn here, without a look-up, that they are in no other either.
 */
BPF_ARRAY(asking, u32, LRP_ASKING);

#define MARK_TIME 0xff /* the bits that tell when: the last ones of a time in units of flow.seen */

/* What SYNs of these ports leave, but for the time. It is the same for packets and their replies. */
INLINE u32 mark_of(__be16 port, __be16 other, u32 ifindex)
{
	return ((port ^ other) * 0x9e3779b1 ^ ifindex * 0x85ebca6b) & ~MARK_TIME;
}

/* Where they leave it. */
INLINE u32 *asking_at(u32 mark)
{
	int place = mark / (0xffffffff / LRP_ASKING + 1);

	return asking.lookup(&place);
}

INLINE void leave_mark(u32 mark, u32 now)
{
	u32 *at = asking_at(mark);

	if (at)
		*at = mark | (now & MARK_TIME);
}

INLINE bool finds_mark(u32 mark, u32 now)
{
	u32 *at = asking_at(mark);

	/* Another CPU may be ahead of ours. */
	return at && (*at & ~MARK_TIME) == mark && ((now + 1 - *at) & MARK_TIME) <= LRP_ASKING_LIFETIME + 1;
}

INLINE struct work4 *work_area4(void)
{
	int zero = 0;

	return work_areas4.lookup(&zero);
}

INLINE struct work6 *work_area6(void)
{
	int zero = 0;

	return work_areas6.lookup(&zero);
}

#define FAMILY 4
#include "frontend.h"
#include "flow.h"
#include "icmp.h"
#include "tc.h"
#undef FAMILY

#define FAMILY 6
#include "frontend.h"
#include "flow.h"
#include "icmp.h"
#include "tc.h"
#undef FAMILY

INLINE int outward(struct __sk_buff *skb, bool bridged)
{
	if (skb->vlan_present)
		return TC_NEXT;
#if LRP_IPV4
	if (skb->protocol == ETH_IP4)
		return outward4(skb, bridged);
#endif
#if LRP_IPV6
	if (skb->protocol == ETH_IP6)
		return outward6(skb, bridged);
#endif
	return TC_NEXT;
}

/* From a pod that the node routes to. */
int lrp_from_pod(struct __sk_buff *skb)
{
	return outward(skb, false);
}

/* From a pod on a bridge. */
int lrp_from_port(struct __sk_buff *skb)
{
	return outward(skb, true);
}

/* To a pod. */
int lrp_to_pod(struct __sk_buff *skb)
{
	if (skb->vlan_present)
		return TC_NEXT;
#if LRP_IPV4
	if (skb->protocol == ETH_IP4)
		return inward4(skb);
#endif
#if LRP_IPV6
	if (skb->protocol == ETH_IP6)
		return inward6(skb);
#endif
	return TC_NEXT;
}
