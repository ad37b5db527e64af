/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Compile-time switches, set by the loader with -D. A mode pays only for itself: what it does not use is not compiled.
 *
 *   LRP_IPV4, LRP_IPV6        1: the family is redirected; 0: left alone
 *   LRP_CLUSTER_IP            1: kube-proxy is replaced, so session affinity exists
 *   LRP_HOST_NETNS_COOKIE     if defined: only sockets of the network namespace with this cookie (the node's own)
 *   LRP_HAVE_NETNS_COOKIE     1: the kernel has bpf_get_netns_cookie in these hooks (skip and affinity need it)
 *   LRP_HAVE_SET_RETVAL       1: the kernel has bpf_set_retval (a refused connect says ECONNREFUSED; without it, EPERM)
 *   LRP_HAVE_MPTCP            1: the kernel has bpf_skc_to_mptcp_sock (getpeername of an MPTCP connection needs it)
 *   LRP_SOCKET_TABLE          1: the kernel has the sock_release hook and compare-and-swap, which the table of sockets needs
 *   LRP_HAVE_COARSE_TIME      1: the kernel has bpf_ktime_get_coarse_ns, a cheaper clock for flows (5.11)
 *   LRP_NEW_FLOWS             0: known flows are served and no new ones begun (the mode's TC programs are leaving)
 *   LRP_FD_<map>              the map's file descriptor in the loader's process (maps.h)
 */
#ifndef LRP_CONFIG_H
#define LRP_CONFIG_H

#ifndef LRP_IPV4
#define LRP_IPV4 1
#endif
#ifndef LRP_IPV6
#define LRP_IPV6 1
#endif
#ifndef LRP_CLUSTER_IP
#define LRP_CLUSTER_IP 0
#endif
#ifndef LRP_HAVE_NETNS_COOKIE
#define LRP_HAVE_NETNS_COOKIE 1
#endif
#ifndef LRP_HAVE_SET_RETVAL
#define LRP_HAVE_SET_RETVAL 1
#endif

#ifndef LRP_HAVE_MPTCP
#define LRP_HAVE_MPTCP 1
#endif
#ifndef LRP_HAVE_COARSE_TIME
#define LRP_HAVE_COARSE_TIME 1
#endif
#ifndef LRP_NEW_FLOWS
#define LRP_NEW_FLOWS 1
#endif
#ifndef LRP_SOCKET_TABLE
#define LRP_SOCKET_TABLE 1
#endif

/* Raise it when a place, few_peers or many_peers change: sockets that stand keep what they have under the old number. */
#define LRP_SOCKETS_VERSION 1

/* Raise it when a flow or its key changes. */
#define LRP_FLOWS_VERSION 1

/* Places in each family's table of sockets (a power of two). */
#define LRP_PLACES 32768

/* Frontends that one socket remembers in its storage: a few at first, more (a power of two) in a second one on demand. */
#define LRP_FEW_PEERS 4
#define LRP_MANY_PEERS 64

/* How far a run is searched for the backend that a socket or client had before the run was rewritten. */
#define LRP_SCAN_MAX 64

/* How often a lookup is repeated that met a run in the middle of being replaced. */
#define LRP_LOOKUP_TRIES 4

/*
 * Lifetimes of flows at TC level, in units of flow.seen (1.07 s), while no packet comes. Past it a UDP flow chooses
 * anew (a DNS query is answered or given up by then), and another flow may have a half-open or ended one's port.
 */
#define LRP_UDP_LIFETIME 60
#define LRP_HALF_OPEN_LIFETIME 60
#define LRP_ENDED_LIFETIME 10

/*
 * What is on its way between a SYN and its answer is looked for so long after the SYN, in units of flow.seen; and how many
 * SYNs leave a mark for that (a power of two).
 */
#define LRP_ASKING_LIFETIME 2
#define LRP_ASKING 4096

/* How many source ports are tried for a flow whose own is taken towards its backend. */
#define LRP_PORT_TRIES 8

/* Datagrams in pieces that are on their way at once, each way, in each family. */
#define LRP_MAX_FRAGMENTS 8192

/* Extension headers that an IPv6 packet is followed through. */
#define LRP_EXTENSIONS 6

/* Whom a pod that is its own backend sees asking: addresses that nobody has and no pod finds on its own network. */
#define LRP_LOOPBACK4 0xa9fe2a01	       /* 169.254.42.1 */
#define LRP_LOOPBACK6 0x01000000, 1, 0, 0x2a01 /* 100:0:0:1::2a01, of the dummy prefix of RFC 9780 */

#endif
