/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * BCC force-includes this file before anything else and takes its presence for "kernel headers are here".
 * Our programs use UAPI contexts only (bpf_sock_addr, __sk_buff), so a handful of types is all they need and every
 * kernel takes them. See README.md in bpf/.
 */
#ifndef LRP_SHIM_KCONFIG_H
#define LRP_SHIM_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1 /* BCC's bpf.h hides program types without it */

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long uintptr_t;
typedef unsigned long size_t;

#define true 1
#define false 0
#define NULL ((void *)0)

#endif
