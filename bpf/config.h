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
#ifndef LRP_SOCKET_TABLE
#define LRP_SOCKET_TABLE 1
#endif

/* Raise it when a place, few_peers or many_peers change: sockets that stand keep what they have under the old number. */
#define LRP_SOCKETS_VERSION 1

/* Places in each family's table of sockets (a power of two). */
#define LRP_PLACES 32768

/* Frontends that one socket remembers in its storage: a few at first, more (a power of two) in a second one on demand. */
#define LRP_FEW_PEERS 4
#define LRP_MANY_PEERS 64

/* How far a run is searched for the backend that a socket or client had before the run was rewritten. */
#define LRP_SCAN_MAX 64

/* How often a lookup is repeated that met a run in the middle of being replaced. */
#define LRP_LOOKUP_TRIES 4

#endif
