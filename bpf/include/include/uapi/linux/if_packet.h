/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Empty on purpose: BCC includes it by name, and our programs use nothing of it. */
