/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Layouts of everything that the maps hold. They are written here only: the Python side reads them back from the
 * loaded maps' BTF and refuses to run with others.
 *
 * Byte order: addresses and ports are in network byte order everywhere, as sockets and packets carry them, so that a
 * hook compares and copies without conversion. All other numbers are in host order.
 *
 * Padding is explicit and zero: hash keys are compared byte by byte.
 * An IPv4 address is an array of one word, so that the templates (helpers.h) read the same for both families.
 */
#ifndef LRP_STRUCTS_H
#define LRP_STRUCTS_H

/* Key of the frontends maps. */
struct frontend4 {
	__be32 ip[1];
	__be16 port;
	u8 protocol;
	u8 pad;
};

struct frontend6 {
	__be32 ip[4];
	__be16 port;
	u8 protocol;
	u8 pad;
};

/*
 * Value of the frontends maps. It is never changed while the frontend stands: a reader of the same hash bucket may miss
 * an entry whose value is being replaced, for the kernel puts the new one in front and then takes the old one away.
 */
struct frontend_id {
	u32 id;
};

/* By id: where the frontend's run of slots starts. The one word that an update flips. */
struct run_start {
	u32 first;
};

enum run_flags {
	RUN_LOCAL_REDIRECT = 1, /* a policy's frontend (else a plain ClusterIP) */
	RUN_SKIP = 2,		/* some namespaces are exempt: look at the skip map */
	RUN_REFUSE = 4,		/* no backend: connects are refused; the run is one slot without an address */
	RUN_AFFINITY = 8,	/* a client keeps its backend: slot.affinity_seconds */
	RUN_DIRECT = 16,	/* a backend's own address, for the TC level (flow.h): its one slot is itself */
	RUN_HAS_ORIGINAL = 32,	/* right behind it stands the run for those who are exempt */
	RUN_ORIGINAL = 64,	/* that run: of a Service's own endpoints, where kube-proxy is replaced */
};

/*
 * One backend of a run. It carries its frontend's key: a run read for one frontend may by then belong to another,
 * and a mismatch tells (see frontend.h). Never changed while a reader may be there.
 * A run and the one behind it (RUN_HAS_ORIGINAL) are written, found and given up as one.
 * count, flags: of the run; index: of the slot in it. generation: of this run, never the same twice in a row for one frontend.
 */
struct slot4 {
	struct frontend4 frontend;
	__be32 ip[1];
	__be16 port;
	u16 count;
	u16 flags;
	u16 index;
	u32 generation;
	u32 affinity_seconds;
};

struct slot6 {
	struct frontend6 frontend;
	__be32 ip[4];
	__be16 port;
	u16 count;
	u16 flags;
	u16 index;
	u32 generation;
	u32 affinity_seconds;
};

/*
 * Keys of the skip maps (a client that reaches the original destination) and of the affinity maps (a client).
 * who: at socket level the cookie of its network namespace, at TC level CLIENT_BY_LINK and its link's index.
 */
#define CLIENT_BY_LINK (1ull << 63)

struct client4 {
	u64 who;
	struct frontend4 frontend;
};

struct client6 {
	u64 who;
	struct frontend6 frontend;
	u32 pad;
};

/* A client's last choice. last_used: nanoseconds of the monotonic clock. */
struct affinity4 {
	u64 last_used;
	__be32 ip[1];
	__be16 port;
	u16 pad;
};

struct affinity6 {
	u64 last_used;
	__be32 ip[4];
	__be16 port;
	u16 pad;
	u32 pad2;
};

/*
 * What a socket remembers of one frontend that it was sent through (socket_state.h tells where).
 * replies: datagrams from the backend are this frontend's replies. Of several frontends with one backend on one socket
 * only the last one sent to has it, for a reply does not tell which it answers.
 * index, generation: where the backend stood in its run, to find it again in O(1) while the run is the same.
 * former: the backend before this one, whose replies may still be on their way; port 0: none.
 * protocol: the frontend's and the backend's; for the agent, which ends sockets whose backend has left.
 * An entry with frontend_port 0 is free.
 */
struct peer4 {
	__be32 frontend_ip[1];
	__be32 backend_ip[1];
	__be32 former_ip[1];
	__be16 frontend_port;
	__be16 backend_port;
	__be16 former_port;
	u16 pad;
	u32 generation;
	u16 index;
	u8 replies;
	u8 protocol;
};

struct peer6 {
	__be32 frontend_ip[4];
	__be32 backend_ip[4];
	__be32 former_ip[4];
	__be16 frontend_port;
	__be16 backend_port;
	__be16 former_port;
	u16 pad;
	u32 generation;
	u16 index;
	u8 replies;
	u8 protocol;
};

/* A place in the table of sockets: an array that is indexed by sockets' cookies. cookie: the owner's; 0: it is free. */
struct place4 {
	u64 cookie;
	struct peer4 peer;
	u32 pad;
};

struct place6 {
	u64 cookie;
	struct peer6 peer;
	u32 pad;
};

/* Socket storage. cursor: scratch, see ENTRY_AT. */
struct few_peers4 {
	struct peer4 peers[LRP_FEW_PEERS];
	u32 cursor;
};

struct few_peers6 {
	struct peer6 peers[LRP_FEW_PEERS];
	u32 cursor;
};

/* next: the entry that is overwritten when all are taken (the oldest). cursor: scratch, see ENTRY_AT. */
struct many_peers4 {
	struct peer4 peers[LRP_MANY_PEERS];
	u32 next;
	u32 cursor;
};

struct many_peers6 {
	struct peer6 peers[LRP_MANY_PEERS];
	u32 next;
	u32 cursor;
};

/* Addresses and ports of a packet, in the order in which packets carry them. */
struct tuple4 {
	__be32 saddr[1];
	__be32 daddr[1];
	__be16 sport;
	__be16 dport;
};

struct tuple6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
};

/* Which way a packet goes through a pod's link. */
enum way { FROM_POD = 0, TO_POD = 1 };

/*
 * A packet of a flow, as it comes to our program. ifindex: of the pod's link; a flow is its pod's alone.
 * In the fragments maps, where ports are not to be had, the ports are the datagram's identification.
 */
struct flow_key4 {
	struct tuple4 tuple;
	u32 ifindex;
	u8 protocol;
	u8 way;
	u16 pad;
};

struct flow_key6 {
	struct tuple6 tuple;
	u32 ifindex;
	u8 protocol;
	u8 way;
	u16 pad;
};

enum flow_flags {
	FLOW_REPLY = 1,	    /* of the backend's packets (else of the client's) */
	FLOW_BOUNCE = 2,    /* the pod is its own backend: back through the link that it came by */
	FLOW_ON_LINK = 4,   /* client and backend are on one bridge: straight to the backend's hardware address */
	FLOW_FIN_SENT = 8,  /* TCP: the client has ended its half */
	FLOW_FIN_BACK = 16, /* TCP: the backend has ended its half */
	FLOW_RESET = 32,    /* TCP: either has reset the connection */
	FLOW_OFF_LINK = 64, /* client and backend are not on one bridge; with neither flag it is not known yet */
	FLOW_TAKEN = 128, /* TCP: the backend has another connection of these ports, whose packets are not the flow's */
};

/*
 * What becomes of a flow's packets one way; each flow has two entries, for its client's packets and for the replies.
 * seen: when a packet came last, in units of 2^30 ns of the monotonic clock. isn: of the client's SYN.
 * index: where the backend stood in its run. mac: of the backend, with FLOW_ON_LINK.
 */
struct flow4 {
	struct tuple4 becomes;
	u32 seen;
	u32 isn;
	u16 index;
	u8 flags;
	u8 pad;
	u8 mac[6];
	u16 pad2;
};

struct flow6 {
	struct tuple6 becomes;
	u32 seen;
	u32 isn;
	u16 index;
	u8 flags;
	u8 pad;
	u8 mac[6];
	u16 pad2;
};

/* A run as a program found it; in no map. */
struct run {
	u32 first;
	u32 id;
	u16 count;
	u16 flags;
};

/* An address on its way between a hook's context and the templates; in no map. */
struct destination4 {
	__be32 ip[1];
	__be16 port;
};

struct destination6 {
	__be32 ip[4];
	__be16 port;
};

/* A backend that was chosen, and where it stands in its run; in no map. fresh: the socket does not remember it yet. */
struct choice4 {
	struct destination4 backend;
	u32 generation;
	u16 index;
	bool fresh;
};

struct choice6 {
	struct destination6 backend;
	u32 generation;
	u16 index;
	bool fresh;
};

/* Per frontend id and CPU. Id 0 is nobody's: its `failed` counts lookups that never met a settled run. */
struct counters {
	u64 redirected;
	u64 refused;
	u64 skipped;
	u64 failed; /* state could not be kept: left untranslated (at socket level TCP only lacks getpeername) */
};

/*
 * One redirect, for whoever watches. family: 4 or 6; an IPv4 address is in ip[0].
 * netns_cookie, pid, command: at socket level; ifindex: at TC level, of the pod's link.
 */
struct event {
	u64 netns_cookie;
	u32 pid;
	u8 hook;   /* enum hook */
	u8 action; /* enum action */
	u8 family;
	u8 protocol;
	__be32 frontend_ip[4];
	__be32 backend_ip[4];
	__be16 frontend_port;
	__be16 backend_port;
	char command[16];
	u32 ifindex;
};

enum hook { HOOK_CONNECT = 1, HOOK_SENDMSG = 2, HOOK_PACKET = 3 };

enum action { ACTION_PASS = 0, ACTION_REDIRECTED = 1, ACTION_REFUSED = 2, ACTION_SKIPPED = 3, ACTION_FAILED = 4 };

/*
 * What the agent tells programs. watching: someone reads events. settled: where a flow is redirected, it is to a frontend
 * that is there.
 */
enum control_key { CONTROL_WATCHING, CONTROL_SETTLED, CONTROL_KEYS };

struct control {
	u32 holds;
};

#endif
