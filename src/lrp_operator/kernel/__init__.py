"""Thin, over the kernel: bpf(2), pins, links, network namespaces, socket diagnosis. Knows nothing of policies."""
