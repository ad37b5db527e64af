/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The socket level: programs on a cgroup's connect, sendmsg, recvmsg, getpeername and sock_release hooks.
 *
 * A connect (TCP, UDP) or an unconnected send to a frontend is sent to a local backend before any packet exists; replies
 * and getpeername show the frontend again. No packet is touched, and a connection costs nothing once it stands.
 *
 * An IPv6 socket may carry IPv4 in mapped addresses (::ffff:a.b.c.d): the *6 hooks then do the IPv4 work. Datagrams to
 * a mapped address pass the sendmsg4 hook, yet their replies recvmsg6.
 */
#include "config.h"
#include "structs.h"
#include "helpers.h"
#include "maps.h"
#include "events.h"

/* Whose call it is. */
INLINE void name_caller(struct event *event, struct bpf_sock_addr *ctx)
{
#if LRP_HAVE_NETNS_COOKIE
	event->netns_cookie = lrp_netns_cookie(ctx);
#endif
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->command, sizeof(event->command));
}

#define FAMILY 4
#include "frontend.h"
#include "socket_state.h"
#include "socket.h"
#undef FAMILY

#define FAMILY 6
#include "frontend.h"
#include "socket_state.h"
#include "socket.h"
#undef FAMILY

/* The protocol that frontends are keyed by; 0 for what is never redirected (ping sockets, UDP-Lite ...). */
INLINE u8 frontend_protocol(struct bpf_sock_addr *ctx)
{
	u32 protocol = ctx->protocol;

	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
		return protocol;
	return protocol == IPPROTO_MPTCP ? IPPROTO_TCP : 0;
}

/* Sockets of other namespaces than the node's own are not ours in hostNamespaceOnly mode. */
INLINE bool in_scope(struct bpf_sock_addr *ctx)
{
#ifdef LRP_HOST_NETNS_COOKIE
	return lrp_netns_cookie(ctx) == LRP_HOST_NETNS_COOKIE;
#else
	return true;
#endif
}

INLINE int refuse(void)
{
#if LRP_HAVE_SET_RETVAL
	lrp_set_retval(-ECONNREFUSED);
#endif
	return REJECT;
}

INLINE bool is_mapped(struct bpf_sock_addr *ctx)
{
	return ctx->user_ip6[0] == 0 && ctx->user_ip6[1] == 0 && ctx->user_ip6[2] == V4_MAPPED_WORD;
}

/* How a hook ends after `forward` has answered. */
INLINE int verdict(u32 action)
{
	return action == ACTION_REFUSED ? refuse() : PROCEED;
}

#if LRP_IPV4
INLINE u32 decide4(struct bpf_sock_addr *ctx, __be32 ip, struct destination4 *to, u32 hook)
{
	struct frontend4 frontend = {.ip = {ip}, .port = ctx->user_port, .protocol = frontend_protocol(ctx)};

	if (!frontend.protocol || !in_scope(ctx))
		return ACTION_PASS;
	return forward4(ctx, &frontend, to, hook);
}

INLINE int outward4(struct bpf_sock_addr *ctx, u32 hook)
{
	struct destination4 to = {};
	u32 action = decide4(ctx, ctx->user_ip4, &to, hook);

	if (action == ACTION_REDIRECTED) {
		WRITE_CONTEXT(ctx, user_ip4, to.ip[0]);
		WRITE_CONTEXT(ctx, user_port, to.port);
	}
	return verdict(action);
}
#endif

INLINE int outward_mapped(struct bpf_sock_addr *ctx, u32 hook)
{
	u32 action = ACTION_PASS;
#if LRP_IPV4
	struct destination4 to = {};

	action = decide4(ctx, ctx->user_ip6[3], &to, hook);
	if (action == ACTION_REDIRECTED) {
		WRITE_CONTEXT(ctx, user_ip6[3], to.ip[0]);
		WRITE_CONTEXT(ctx, user_port, to.port);
	}
#endif
	return verdict(action);
}

INLINE int outward6(struct bpf_sock_addr *ctx, u32 hook)
{
	u32 action = ACTION_PASS;
#if LRP_IPV6
	struct frontend6 frontend = {
	    .ip = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]},
	    .port = ctx->user_port,
	    .protocol = frontend_protocol(ctx),
	};
	struct destination6 to = {};

	if (frontend.protocol && in_scope(ctx))
		action = forward6(ctx, &frontend, &to, hook);
	if (action == ACTION_REDIRECTED) {
		WRITE_CONTEXT(ctx, user_ip6[0], to.ip[0]);
		WRITE_CONTEXT(ctx, user_ip6[1], to.ip[1]);
		WRITE_CONTEXT(ctx, user_ip6[2], to.ip[2]);
		WRITE_CONTEXT(ctx, user_ip6[3], to.ip[3]);
		WRITE_CONTEXT(ctx, user_port, to.port);
	}
#endif
	return verdict(action);
}

INLINE int inward4(struct bpf_sock_addr *ctx)
{
	struct destination4 source = {.ip = {ctx->user_ip4}, .port = ctx->user_port};

	if (backward4(ctx, &source)) {
		WRITE_CONTEXT(ctx, user_ip4, source.ip[0]);
		WRITE_CONTEXT(ctx, user_port, source.port);
	}
	return PROCEED;
}

INLINE int inward6(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx)) {
#if LRP_IPV4
		struct destination4 source = {.ip = {ctx->user_ip6[3]}, .port = ctx->user_port};

		if (backward4(ctx, &source)) {
			WRITE_CONTEXT(ctx, user_ip6[3], source.ip[0]);
			WRITE_CONTEXT(ctx, user_port, source.port);
		}
#endif
		return PROCEED;
	}
#if LRP_IPV6
	struct destination6 source = {
	    .ip = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]},
	    .port = ctx->user_port,
	};

	if (backward6(ctx, &source)) {
		WRITE_CONTEXT(ctx, user_ip6[0], source.ip[0]);
		WRITE_CONTEXT(ctx, user_ip6[1], source.ip[1]);
		WRITE_CONTEXT(ctx, user_ip6[2], source.ip[2]);
		WRITE_CONTEXT(ctx, user_ip6[3], source.ip[3]);
		WRITE_CONTEXT(ctx, user_port, source.port);
	}
#endif
	return PROCEED;
}

#if LRP_IPV4
/*
 * A send without an address on an IPv6 socket that is connected to a mapped address passes the sendmsg4 hook as if it
 * had named that address. connect has decided where it goes; what comes back from elsewhere would not be accepted.
 */
INLINE bool is_connected_there(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && sk->family == AF_INET6 && sk->state == BPF_TCP_ESTABLISHED && sk->dst_ip4 == ctx->user_ip4 &&
	       sk->dst_port == (__be16)ctx->user_port;
}

int lrp_connect4(struct bpf_sock_addr *ctx)
{
	return outward4(ctx, HOOK_CONNECT);
}

int lrp_sendmsg4(struct bpf_sock_addr *ctx)
{
	if (is_connected_there(ctx))
		return PROCEED;
	return outward4(ctx, HOOK_SENDMSG);
}

int lrp_recvmsg4(struct bpf_sock_addr *ctx)
{
	return inward4(ctx);
}

int lrp_getpeername4(struct bpf_sock_addr *ctx)
{
	return inward4(ctx);
}
#endif

int lrp_connect6(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		return outward_mapped(ctx, HOOK_CONNECT);
	return outward6(ctx, HOOK_CONNECT);
}

/* A mapped address does not come here: see lrp_sendmsg4. */
int lrp_sendmsg6(struct bpf_sock_addr *ctx)
{
	return outward6(ctx, HOOK_SENDMSG);
}

int lrp_recvmsg6(struct bpf_sock_addr *ctx)
{
	return inward6(ctx);
}

int lrp_getpeername6(struct bpf_sock_addr *ctx)
{
	return inward6(ctx);
}

#if LRP_SOCKET_TABLE
/* Every inet socket's close(): of those that are redirected and of all others, so it does very little. */
int lrp_inet_sock_release(struct bpf_sock *ctx)
{
	u64 cookie = lrp_socket_cookie(ctx);

	/* An IPv6 socket may have a place in either. To look in both for every socket would touch cold memory each time. */
	leave_place4(cookie);
	if (ctx->family == AF_INET6)
		leave_place6(cookie);
	return PROCEED;
}
#endif
