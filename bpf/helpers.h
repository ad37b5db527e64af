/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The C that every file here starts from: names per family, constants of the kernel's ABI, and helper functions by
 * their number where BCC's own declaration is missing or too new.
 */
#ifndef LRP_HELPERS_H
#define LRP_HELPERS_H

#define INLINE static inline __attribute__((always_inline))

/*
 * Templates: frontend.h and socket_state.h are written once and included once per family with FAMILY set to 4 or 6;
 * F(slot) is then slot4 or slot6.
 */
#define LRP_PASTE_(name, family) name##family
#define LRP_PASTE(name, family) LRP_PASTE_(name, family)
#define F(name) LRP_PASTE(name, FAMILY)

#define AF_INET 2
#define AF_INET6 10

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_MPTCP 262

#define ECONNREFUSED 111

/* What a cgroup program returns. */
#define PROCEED 1
#define REJECT 0

/* What a TC program returns. */
#define TC_NEXT (-1) /* TC_ACT_UNSPEC: whoever comes next may have it */
#define TC_DROP 2

#define V4_MAPPED_WORD bpf_htonl(0x0000ffff) /* the third word of ::ffff:a.b.c.d */

#ifndef bpf_htonl
#define bpf_htonl(x) __builtin_bswap32(x)
#endif
#ifndef bpf_htons
#define bpf_htons(x) __builtin_bswap16(x)
#endif

static int (*lrp_set_retval)(int retval) = (void *)187;	 /* bpf_set_retval, 5.18 */
static u64 (*lrp_socket_cookie)(void *ctx) = (void *)46; /* bpf_get_socket_cookie; BCC believes that it has 32 bits */
static void *(*lrp_skc_to_mptcp_sock)(void *sk) = (void *)196; /* 5.19 */
static u64 (*lrp_netns_cookie)(void *ctx) = (void *)122;       /* bpf_get_netns_cookie, 5.7 */
static long (*lrp_ringbuf_output)(void *ringbuf, void *data, u64 size, u64 flags) = (void *)130; /* 5.8 */
static u64 (*lrp_coarse_time)(void) = (void *)(LRP_HAVE_COARSE_TIME ? 160 : 5); /* bpf_ktime_get_coarse_ns, 5.11 */
static u64 (*lrp_jiffies)(void) = (void *)118; /* bpf_jiffies64, 5.6: inlined, one load */
static void *(*lrp_sk_storage_get)(void *map, void *sk, void *value, u64 flags) = (void *)107; /* 5.2 */

#define SK_STORAGE_CREATE 1

/*
 * Write a context field. The verifier wants "context + constant" in the store itself; left to C, the compiler likes to
 * share a computed pointer to the field between two branches that write it, which the verifier refuses.
 */
#define WRITE_CONTEXT(ctx, field, value)                                                                               \
	asm volatile("*(u32 *)(%0 + %1) = %2"                                                                          \
		     :                                                                                                 \
		     : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sock_addr, field)), "r"((u64)(value))               \
		     : "memory")

/* What find_peer looks for: an entry's frontend, or an address whose replies are the entry's. */
enum role { AS_FRONTEND, AS_SOURCE };

/*
 * Comparisons and conditions without a branch for each part: the verifier walks what follows once for each way through
 * a branch. unless_zero(x, y): x, or 0 where y is 0.
 */
INLINE u32 ip_differs4(const __be32 *a, const __be32 *b)
{
	return *a ^ *b;
}

INLINE u32 ip_differs6(const __be32 *a, const __be32 *b)
{
	return (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
}

INLINE u32 unless_zero(u32 value, u64 condition)
{
	return value & -(u32)((condition | -condition) >> 63);
}

INLINE void copy_ip4(__be32 *to, const __be32 *from)
{
	*to = *from;
}

INLINE void copy_ip6(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/* What a CPU knows of the time. now: in the units of flow.seen. */
struct clock {
	u64 jiffy;
	u32 now;
	u32 pad;
};

/* Now, in the units of flow.seen. The kernel's clock is asked once a jiffy: a look at the jiffies costs next to nothing. */
INLINE u32 flow_clock(struct clock *clock)
{
	u64 jiffy = lrp_jiffies();

	if (clock->jiffy != jiffy) {
		clock->jiffy = jiffy;
		clock->now = lrp_coarse_time() >> 30;
	}
	return clock->now;
}

/* The socket of a hook's context. In assembly for the same reason as WRITE_CONTEXT. */
INLINE void *context_socket(struct bpf_sock_addr *ctx)
{
	void *sk;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(sk) : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sock_addr, sk)));
	return sk;
}

#if LRP_HAVE_MPTCP
/*
 * An MPTCP connection has two sockets: the program's, which getpeername and close pass, and one below it for each path,
 * which connect passes. What is remembered belongs to the program's.
 */
INLINE void *whole_connection(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP ? lrp_skc_to_mptcp_sock(context_socket(ctx)) : NULL;
}

INLINE bool is_subflow(struct bpf_sock_addr *ctx)
{
	return whole_connection(ctx) != NULL;
}

INLINE void *program_socket(struct bpf_sock_addr *ctx)
{
	void *whole = whole_connection(ctx);

	return whole ? whole : context_socket(ctx);
}
#else
INLINE bool is_subflow(struct bpf_sock_addr *ctx)
{
	return false;
}

INLINE void *program_socket(struct bpf_sock_addr *ctx)
{
	return context_socket(ctx);
}
#endif

#endif
