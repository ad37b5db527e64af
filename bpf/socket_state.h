/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Template, once per FAMILY: what a socket remembers, so that a reply's source and getpeername show the frontend.
 *
 * It is kept in socket storage: it dies with the socket, is never evicted, and costs sockets that are not redirected
 * nothing. Most sockets talk to one frontend; four have room at once, and a second storage of LRP_MANY_PEERS is made
 * for the rare socket that talks to more (one big storage would cost every socket memory and time). The hooks run
 * under the socket's lock, so no lock is needed here.
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

/* The entry of a frontend that the socket was sent through before, or NULL. */
INLINE struct F(peer) *
    F(find_peer)(struct bpf_sock_addr *ctx, struct F(few_peers) * few, const struct F(frontend) * frontend)
{
	struct F(many_peers) * many;
	u32 i;

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

/* A free entry; the oldest of the second storage when all are taken. NULL: the kernel gives no memory. */
INLINE struct F(peer) * F(new_peer)(struct bpf_sock_addr *ctx, struct F(few_peers) * few)
{
	struct F(many_peers) * many;
	u32 i;

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
INLINE void F(release_replies)(struct bpf_sock_addr *ctx, struct F(few_peers) * few, const __be32 *ip, __be16 port)
{
	struct F(many_peers) * many;
	u32 i;

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

/* The frontend whose replies come from this backend, or NULL. */
INLINE struct F(peer) *
    F(find_replying)(struct bpf_sock_addr *ctx, struct F(few_peers) * few, const __be32 *ip, __be16 port)
{
	struct F(many_peers) * many;
	u32 i;

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
INLINE bool F(remember)(struct bpf_sock_addr *ctx, struct F(few_peers) * few, struct F(peer) * peer,
			const struct F(slot) * slot, u32 index)
{
	if (!peer)
		peer = F(new_peer)(ctx, few);
	if (!peer)
		return false;
	/* An entry that is used again (a TCP socket's, or the oldest of many) may be another frontend's. */
	if (!peer->replies || !F(is_backend)(peer, slot->ip, slot->port) || !F(is_frontend)(peer, &slot->frontend)) {
		F(release_replies)(ctx, few, slot->ip, slot->port);
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

/* The socket was sent somewhere directly: what comes back from there is no frontend's reply any more. */
INLINE void F(forget)(struct bpf_sock_addr *ctx, const struct F(frontend) * destination)
{
	struct F(few_peers) *few = F(socket_peers)(ctx, 0);

	if (few)
		F(release_replies)(ctx, few, destination->ip, destination->port);
}
