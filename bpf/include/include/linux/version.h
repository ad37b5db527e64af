/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The oldest kernel that we support, not the running one: BCC picks helper declarations by it and stores it in the
 * object, where only kprobes are checked against it, and we load none.
 */
#ifndef LRP_SHIM_VERSION_H
#define LRP_SHIM_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)

#endif
