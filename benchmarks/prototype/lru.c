/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The usual scheme of socket-level load balancing, rebuilt from a description of what it does, for comparison only.
 *
 *   forward    a hash from the frontend to its count of backends, the same hash again from frontend and slot to a
 *              backend's number, a hash from the number to the backend; then the original address goes to an LRU hash
 *              keyed by the socket's cookie and the backend. What is no frontend might still be a port of the node, so
 *              a table of prefixes is asked whose address it is.
 *   backward   the LRU hash by cookie and source, then the frontend again: it must still be the same one.
 *   release    every socket that closes, redirected or not, has its entry deleted.
 *
 * IPv4, and only what these steps take: no traffic policies, session affinity, source ranges or exemptions. So it is
 * rather cheaper than the real thing.
 */
static u64 (*socket_cookie)(void *ctx) = (void *)46; /* bpf_get_socket_cookie; BCC believes that it has 32 bits */

#define NO_PREALLOC 1 /* prefix tables demand it; the hashes have it by default */

struct service_key {
	u32 ip;
	u16 port;
	u16 slot; /* 0: the frontend itself */
	u8 protocol;
	u8 scope;
	u16 pad;
};

struct service {
	u32 backend;
	u16 count;
	u16 number;
	u32 flags;
};

struct backend {
	u32 ip;
	u16 port;
	u16 state;
	u32 zone;
};

struct sent_key {
	u64 cookie;
	u32 ip;
	u16 port;
	u16 pad;
};

struct sent {
	u32 ip;
	u16 port;
	u16 number;
};

struct prefix {
	u32 length;
	u32 ip;
};

BPF_F_TABLE("hash", struct service_key, struct service, services, 65536, NO_PREALLOC);
BPF_F_TABLE("hash", u32, struct backend, backends, 65536, NO_PREALLOC);
BPF_F_TABLE("lru_hash", struct sent_key, struct sent, sent_by, 262144, 0);
BPF_F_TABLE("lpm_trie", struct prefix, u32, owners, 65536, NO_PREALLOC);

#define INLINE static inline __attribute__((always_inline))
#define OWNER_NODE 1
#define TCP 6
#define UDP 17
#define PROCEED 1
#define REJECT 0

INLINE struct service *service_at(struct service_key *key)
{
	struct prefix whole = {.length = 32, .ip = key->ip};
	struct service *found = services.lookup(key);
	u32 *owner;

	if (found)
		return found;
	owner = owners.lookup(&whole);
	if (!owner || *owner != OWNER_NODE)
		return NULL;
	key->ip = 0; /* a port of the node */
	return services.lookup(key);
}

INLINE int forward(struct bpf_sock_addr *ctx)
{
	u64 cookie = socket_cookie(ctx);
	struct service_key key = {.ip = ctx->user_ip4, .port = ctx->user_port, .protocol = ctx->protocol};
	struct sent original = {.ip = key.ip, .port = key.port};
	struct sent_key back = {.cookie = cookie};
	struct service *service, *slot;
	struct backend *backend;
	struct sent *known;

	if (key.protocol != TCP && key.protocol != UDP)
		return PROCEED;
	service = service_at(&key);
	if (!service)
		return PROCEED;
	if (!service->count)
		return REJECT;
	original.number = service->number;
	key.slot = (key.protocol == TCP ? bpf_get_prandom_u32() : (u32)cookie) % service->count + 1;
	slot = services.lookup(&key);
	if (!slot)
		return REJECT;
	backend = backends.lookup(&slot->backend);
	if (!backend)
		return REJECT;
	back.ip = backend->ip;
	back.port = backend->port;
	known = sent_by.lookup(&back);
	if (!known || known->ip != original.ip || known->port != original.port || known->number != original.number)
		if (sent_by.update(&back, &original))
			return REJECT;
	ctx->user_ip4 = backend->ip;
	ctx->user_port = backend->port;
	return PROCEED;
}

INLINE int backward(struct bpf_sock_addr *ctx)
{
	struct sent_key key = {.cookie = socket_cookie(ctx), .ip = ctx->user_ip4, .port = ctx->user_port};
	struct sent *original = sent_by.lookup(&key);
	struct service_key frontend = {.protocol = ctx->protocol};
	struct service *service;

	if (!original)
		return PROCEED;
	frontend.ip = original->ip;
	frontend.port = original->port;
	service = service_at(&frontend);
	if (!service || service->number != original->number) {
		sent_by.delete(&key);
		return PROCEED;
	}
	ctx->user_ip4 = original->ip;
	ctx->user_port = original->port;
	return PROCEED;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return backward(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return backward(ctx);
}

int release(struct bpf_sock *ctx)
{
	struct sent_key key = {.cookie = socket_cookie(ctx), .ip = ctx->dst_ip4, .port = ctx->dst_port};

	sent_by.delete(&key);
	return PROCEED;
}
