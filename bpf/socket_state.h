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
 * The hooks run under the socket's lock, so only the taking of a place is a race, between sockets: compare-and-swap.
 */

INLINE bool F(is_frontend)(const struct F(peer) * peer, const struct F(frontend) * frontend)
{
	return peer->frontend_port == frontend->port && F(same_ip)(peer->frontend_ip, frontend->ip);
}

INLINE bool F(is_backend)(const struct F(peer) * peer, const __be32 *ip, __be16 port)
{
	return peer->backend_port == port && F(same_ip)(peer->backend_ip, ip);
}

INLINE struct F(few_peers) * F(socket_peers)(struct bpf_sock_addr *ctx, u64 flags)
{
	return lrp_sk_storage_get(F(map_few_peers), ctx->sk, NULL, flags);
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
	u64 cookie = bpf_get_socket_cookie(ctx);
	struct F(place) *place = F(place_at)(cookie);

	if (place && place->cookie == cookie)
		return &place->peer;
#endif
	return NULL;
}

/* Take the socket's place in the table; NULL: someone has it. What the last owner left there is wiped. */
INLINE struct F(peer) * F(take_place)(struct bpf_sock_addr *ctx)
{
#if LRP_SOCKET_TABLE
	u64 cookie = bpf_get_socket_cookie(ctx);
	struct F(place) *place = F(place_at)(cookie);

	if (place && !place->cookie && !__sync_val_compare_and_swap(&place->cookie, 0, cookie)) {
		__builtin_memset(&place->peer, 0, sizeof(place->peer));
		return &place->peer;
	}
#endif
	return NULL;
}

#if LRP_SOCKET_TABLE
/* The socket is closed: its place is free. */
INLINE void F(leave_place)(u64 cookie)
{
	struct F(place) *place = F(place_at)(cookie);

	if (place && place->cookie == cookie)
		*(volatile u64 *)&place->cookie = 0;
}
#endif

/* --- Socket storage */

/* The second storage, if this socket needed one. */
INLINE struct F(many_peers) * F(more_peers)(struct bpf_sock_addr *ctx, const struct F(few_peers) * few)
{
	if (!few->peers[LRP_FEW_PEERS - 1].frontend_port)
		return NULL;
	return lrp_sk_storage_get(F(map_many_peers), ctx->sk, NULL, 0);
}

/*
 * An entry of the second storage. The detour through memory makes the verifier forget which index it was: it would
 * walk all that follows once for each of them.
 */
INLINE struct F(peer) * F(peer_at)(struct F(many_peers) * many, u32 index)
{
	*(volatile u32 *)&many->cursor = index;
	index = *(volatile u32 *)&many->cursor;
	return &many->peers[index & (LRP_MANY_PEERS - 1)];
}

/* --- What is remembered, wherever it is */

/* The entry of a frontend that the socket was sent through before, or NULL. */
INLINE struct F(peer) * F(find_peer)(struct bpf_sock_addr *ctx, const struct F(frontend) * frontend)
{
	struct F(peer) *seated = F(seated_peer)(ctx);
	struct F(few_peers) * few;
	struct F(many_peers) * many;
	u32 i;

	if (seated && F(is_frontend)(seated, frontend))
		return seated;
	few = F(socket_peers)(ctx, 0);
	if (!few)
		return NULL;
#pragma clang loop unroll(full)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (F(is_frontend)(&few->peers[i], frontend))
			return &few->peers[i];
	many = F(more_peers)(ctx, few);
	if (!many)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_MANY_PEERS; i++)
		if (F(is_frontend)(&many->peers[i], frontend))
			return F(peer_at)(many, i);
	return NULL;
}

/* A TCP socket has one peer at a time: its entry, or NULL. */
INLINE struct F(peer) * F(only_peer)(struct bpf_sock_addr *ctx)
{
	struct F(peer) *seated = F(seated_peer)(ctx);
	struct F(few_peers) * few;

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
#pragma clang loop unroll(full)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (!few->peers[i].frontend_port)
			return &few->peers[i];
	many = lrp_sk_storage_get(F(map_many_peers), ctx->sk, NULL, SK_STORAGE_CREATE);
	if (!many)
		return NULL;
	return F(peer_at)(many, many->next++);
}

/* From now on nobody's replies come from this backend (until an entry claims them). */
INLINE void F(release_replies)(struct bpf_sock_addr *ctx, const __be32 *ip, __be16 port)
{
	struct F(peer) *seated = F(seated_peer)(ctx);
	struct F(few_peers) * few;
	struct F(many_peers) * many;
	u32 i;

	if (seated && F(is_backend)(seated, ip, port))
		seated->replies = 0;
	few = F(socket_peers)(ctx, 0);
	if (!few)
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (F(is_backend)(&few->peers[i], ip, port))
			few->peers[i].replies = 0;
	many = F(more_peers)(ctx, few);
	if (!many)
		return;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_MANY_PEERS; i++)
		if (F(is_backend)(&many->peers[i], ip, port))
			many->peers[i].replies = 0;
}

/* The entry whose replies come from this backend, or NULL. */
INLINE struct F(peer) * F(find_replying)(struct bpf_sock_addr *ctx, const __be32 *ip, __be16 port)
{
	struct F(peer) *seated = F(seated_peer)(ctx);
	struct F(few_peers) * few;
	struct F(many_peers) * many;
	u32 i;

	if (seated && seated->replies && F(is_backend)(seated, ip, port))
		return seated;
	few = F(socket_peers)(ctx, 0);
	if (!few)
		return NULL;
#pragma clang loop unroll(full)
	for (i = 0; i < LRP_FEW_PEERS; i++)
		if (few->peers[i].replies && F(is_backend)(&few->peers[i], ip, port))
			return &few->peers[i];
	many = F(more_peers)(ctx, few);
	if (!many)
		return NULL;
#pragma clang loop unroll(disable)
	for (i = 0; i < LRP_MANY_PEERS; i++)
		if (many->peers[i].replies && F(is_backend)(&many->peers[i], ip, port))
			return F(peer_at)(many, i);
	return NULL;
}

/* Note that the socket now talks to this slot for its frontend. peer: the frontend's entry, or NULL to make one. */
INLINE bool F(remember)(struct bpf_sock_addr *ctx, struct F(peer) * peer, const struct F(slot) * slot, u32 index)
{
	if (!peer)
		peer = F(new_peer)(ctx);
	if (!peer)
		return false;
	/* An entry that is used again (a TCP socket's, or the oldest of many) may be another frontend's. */
	if (!peer->replies || !F(is_backend)(peer, slot->ip, slot->port) || !F(is_frontend)(peer, &slot->frontend)) {
		F(release_replies)(ctx, slot->ip, slot->port);
		F(copy_ip)(peer->frontend_ip, slot->frontend.ip);
		peer->frontend_port = slot->frontend.port;
		F(copy_ip)(peer->backend_ip, slot->ip);
		peer->backend_port = slot->port;
		peer->protocol = slot->frontend.protocol;
		peer->replies = 1;
	}
	peer->generation = slot->generation;
	peer->index = index;
	return true;
}
