/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: what a socket remembers, so that a reply's source and getpeername show the frontend.
 *
 * Most sockets talk to one frontend and are soon closed (a DNS query), so the first frontend is remembered where that
 * costs next to nothing: in a table, at the place that the socket's cookie gives. The place is free again when the
 * socket is closed (sock_release), and nobody else's until then. Where it is taken (by a socket whose cookie ends in the
 * same bits), and for further frontends, there is socket storage: it is never short and dies with the socket, but its
 * making and its end cost several hundred nanoseconds. Four frontends have room there at once; a second storage of
 * LRP_MANY_PEERS is made for the rare socket that talks to more (one big storage would cost time and memory).
 *
 * A place whose owner is closed without our noticing stays taken until the maps go: while someone has detached the
 * program; the kernel's own sockets (NFS and the like) and, before Linux 5.19, MPTCP's, which no program closes; one that
 * has turned from IPv6 into IPv4 (IPV6_ADDRFORM). Their successors at that place are remembered at the higher price, and
 * after an upgrade that changes the layout the old programs stay.
 *
 * The hooks run under the socket's lock, so only the taking of a place is a race, between sockets: compare-and-swap.
 */

INLINE u32 F(not_frontend)(const struct F(peer) * peer, const __be32 *ip, __be16 port)
{
	return F(ip_differs)(peer->frontend_ip, ip) | (peer->frontend_port ^ port);
}

INLINE u32 F(not_backend)(const struct F(peer) * peer, const __be32 *ip, __be16 port)
{
	return F(ip_differs)(peer->backend_ip, ip) | (peer->backend_port ^ port);
}

INLINE u32 F(not_former)(const struct F(peer) * peer, const __be32 *ip, __be16 port)
{
	return F(ip_differs)(peer->former_ip, ip) | (peer->former_port ^ port);
}

INLINE struct F(few_peers) * F(socket_peers)(struct bpf_sock_addr *ctx, u64 flags)
{
	return lrp_sk_storage_get(F(map_few_peers), program_socket(ctx), NULL, flags);
}

/* --- The table */

INLINE struct F(place) * F(place_at)(u64 cookie)
{
#if LRP_SOCKET_TABLE
	u32 index = cookie & (LRP_PLACES - 1);

	return bpf_map_lookup_elem(F(map_places), &index);
#else
	return NULL;
#endif
}

/* The socket's peer in the table, or NULL if it has no place there. */
INLINE struct F(peer) * F(seated_peer)(struct bpf_sock_addr *ctx)
{
#if LRP_SOCKET_TABLE
	u64 cookie = lrp_socket_cookie(ctx);
	struct F(place) *place = F(place_at)(cookie);

	if (place && place->cookie == cookie)
		return &place->peer;
#endif
	return NULL;
}

/* Take the socket's place in the table; NULL: someone has it. The last owner has wiped it. */
INLINE struct F(peer) * F(take_place)(struct bpf_sock_addr *ctx)
{
#if LRP_SOCKET_TABLE
	u64 cookie = lrp_socket_cookie(ctx);
	struct F(place) *place = F(place_at)(cookie);

	if (is_subflow(ctx))
		return NULL; /* it is not closed by its program, and would keep the place */
	if (place && !place->cookie && !__sync_val_compare_and_swap(&place->cookie, 0, cookie))
		return &place->peer;
#endif
	return NULL;
}

#if LRP_SOCKET_TABLE
/* The socket is closed: its place is wiped, and then, by an operation that nothing passes, free. */
INLINE void F(leave_place)(u64 cookie)
{
	struct F(place) *place = F(place_at)(cookie);

	if (!place || place->cookie != cookie)
		return;
	__builtin_memset(&place->peer, 0, sizeof(place->peer));
	__sync_val_compare_and_swap(&place->cookie, cookie, 0);
}
#endif

/* --- Socket storage */

/* The second storage, if this socket needed one. */
INLINE struct F(many_peers) * F(more_peers)(struct bpf_sock_addr *ctx, const struct F(few_peers) * few)
{
	if (!few->peers[LRP_FEW_PEERS - 1].frontend_port)
		return NULL;
	return lrp_sk_storage_get(F(map_many_peers), program_socket(ctx), NULL, 0);
}

/*
 * An entry of a storage. The detour through memory makes the verifier forget which index it was: it would walk all that
 * follows once for each of them.
 */
#define ENTRY_AT(storage, index, entries)                                                                              \
	({                                                                                                             \
		*(volatile u32 *)&(storage)->cursor = (index);                                                         \
		&(storage)->peers[*(volatile u32 *)&(storage)->cursor & ((entries)-1)];                                \
	})

/* --- What is remembered, wherever it is */

/* Is this address an entry's frontend, or are replies from it the entry's? */
INLINE bool F(matches)(const struct F(peer) * peer, u32 role, const __be32 *ip, __be16 port)
{
	if (role == AS_FRONTEND)
		return !F(not_frontend)(peer, ip, port);
	/* Port 0 is no backend's, and stands for "no former one". */
	return port && (!(F(not_backend)(peer, ip, port) | (peer->replies ^ 1)) || !F(not_former)(peer, ip, port));
}

/* The socket's entry that has an address in a role, or NULL. */
INLINE struct F(peer) * F(find_peer)(struct bpf_sock_addr *ctx, u32 role, const __be32 *ip, __be16 port)
{
	struct F(peer) *seated = F(seated_peer)(ctx);
	struct F(few_peers) * few;
	struct F(many_peers) * many;
	u32 i;

	if (seated && F(matches)(seated, role, ip, port))
		return seated;
	few = F(socket_peers)(ctx, 0);
	if (!few)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (F(matches)(&few->peers[i], role, ip, port))
			return ENTRY_AT(few, i, LRP_FEW_PEERS);
	many = F(more_peers)(ctx, few);
	if (!many)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_MANY_PEERS; i++)
		if (F(matches)(&many->peers[i], role, ip, port))
			return ENTRY_AT(many, i, LRP_MANY_PEERS);
	return NULL;
}

/* The socket's entry for a frontend, or NULL. A TCP socket has one peer at a time: its only entry, whosever it is. */
INLINE struct F(peer) * F(peer_of)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend)
{
	struct F(peer) * seated;
	struct F(few_peers) * few;

	if (frontend->protocol == IPPROTO_UDP)
		return F(find_peer)(ctx, AS_FRONTEND, frontend->ip, frontend->port);
	seated = F(seated_peer)(ctx);
	if (seated)
		return seated;
	few = F(socket_peers)(ctx, 0);
	return few ? &few->peers[0] : NULL;
}

/* A free entry; the oldest of the second storage when all are taken. NULL: the kernel gives no memory. */
INLINE struct F(peer) * F(new_peer)(struct bpf_sock_addr *ctx)
{
	struct F(peer) *taken = F(take_place)(ctx);
	struct F(few_peers) * few;
	struct F(many_peers) * many;
	u32 i;

	if (taken)
		return taken;
	few = F(socket_peers)(ctx, SK_STORAGE_CREATE);
	if (!few)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (!few->peers[i].frontend_port)
			return ENTRY_AT(few, i, LRP_FEW_PEERS);
	many = lrp_sk_storage_get(F(map_many_peers), program_socket(ctx), NULL, SK_STORAGE_CREATE);
	if (!many)
		return NULL;
	return ENTRY_AT(many, many->next++, LRP_MANY_PEERS);
}

/*
 * From now on nobody's replies come from this address, until an entry claims them. At most one entry has it, as its
 * backend or its former one: who takes a backend releases it first.
 */
INLINE void F(release_replies)(struct bpf_sock_addr *ctx, const struct F(destination) * from)
{
	struct F(peer) *peer = F(find_peer)(ctx, AS_SOURCE, from->ip, from->port);

	if (!peer)
		return;
	peer->replies = unless_zero(peer->replies, F(not_backend)(peer, from->ip, from->port));
	peer->former_port = unless_zero(peer->former_port, F(not_former)(peer, from->ip, from->port));
}

/* Not zero unless the entry has this frontend and this backend, and the backend's replies. */
INLINE u32 F(not_same)(const struct F(peer) * peer, const struct F(frontend) * frontend,
		       const struct F(destination) * backend)
{
	return F(not_frontend)(peer, frontend->ip, frontend->port) | F(not_backend)(peer, backend->ip, backend->port) |
	       (peer->replies ^ 1);
}

INLINE void F(place_in_run)(struct F(peer) * peer, const struct F(choice) * choice)
{
	peer->generation = choice->generation;
	peer->index = choice->index;
}

/*
 * Note that the socket now talks to this backend for its frontend; false: the kernel gives no memory. The backend that
 * the entry had before for the same frontend may still answer.
 */
INLINE bool F(remember)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend, const struct F(choice) * choice)
{
	struct F(peer) *peer = F(peer_of)(ctx, frontend);
	u32 other;

	if (!peer)
		peer = F(new_peer)(ctx);
	if (!peer)
		return false;
	/* An entry that is used again (a TCP socket's, or the oldest of many) may be another frontend's. */
	other = F(not_frontend)(peer, frontend->ip, frontend->port);
	F(copy_ip)(peer->former_ip, peer->backend_ip);
	peer->former_port = unless_zero(peer->backend_port, peer->replies) & (unless_zero(1, other) - 1);
	F(copy_ip)(peer->frontend_ip, frontend->ip);
	peer->frontend_port = frontend->port;
	F(copy_ip)(peer->backend_ip, choice->backend.ip);
	peer->backend_port = choice->backend.port;
	peer->protocol = frontend->protocol;
	peer->replies = 1;
	F(place_in_run)(peer, choice);
	return true;
}
