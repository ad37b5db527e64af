/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The maps as the programs refer to them: by the file descriptors that the loader opened (see maps.c for what they
 * are). BCC's own `map.lookup()` works neither in headers nor in macros, and it would create the maps anew.
 */
#ifndef LRP_MAPS_H
#define LRP_MAPS_H

#define BY_FD(fd) ((void *)bpf_pseudo_fd(1, fd))

#define map_frontends4 BY_FD(LRP_FD_FRONTENDS4)
#define map_frontends6 BY_FD(LRP_FD_FRONTENDS6)
#define map_runs BY_FD(LRP_FD_RUNS)
#define map_backends4 BY_FD(LRP_FD_BACKENDS4)
#define map_backends6 BY_FD(LRP_FD_BACKENDS6)
#define map_skip4 BY_FD(LRP_FD_SKIP4)
#define map_skip6 BY_FD(LRP_FD_SKIP6)
#define map_affinity4 BY_FD(LRP_FD_AFFINITY4)
#define map_affinity6 BY_FD(LRP_FD_AFFINITY6)
#define map_places4 BY_FD(LRP_FD_PLACES4)
#define map_places6 BY_FD(LRP_FD_PLACES6)
#define map_few_peers4 BY_FD(LRP_FD_FEW_PEERS4)
#define map_few_peers6 BY_FD(LRP_FD_FEW_PEERS6)
#define map_many_peers4 BY_FD(LRP_FD_MANY_PEERS4)
#define map_many_peers6 BY_FD(LRP_FD_MANY_PEERS6)
#define map_flows4 BY_FD(LRP_FD_FLOWS4)
#define map_flows6 BY_FD(LRP_FD_FLOWS6)
#define map_recent4 BY_FD(LRP_FD_RECENT4)
#define map_recent6 BY_FD(LRP_FD_RECENT6)
#define map_fragments4 BY_FD(LRP_FD_FRAGMENTS4)
#define map_fragments6 BY_FD(LRP_FD_FRAGMENTS6)
#define map_counters BY_FD(LRP_FD_COUNTERS)
#define map_control BY_FD(LRP_FD_CONTROL)
#define map_events BY_FD(LRP_FD_EVENTS)

#endif
