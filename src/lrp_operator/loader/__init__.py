"""From C in bpf/ to programs in the kernel, by BCC in a short-lived child process.

LLVM would stay in the agent's memory for good, so a child compiles, loads, pins, reports on standard output and exits:
`run` starts it, `__main__` is the child and the only importer of bcc. What it has made is `kept` in files, where there
is a place for them; `again` puts the same together from those, without a child.

What the child is told and what it answers is in `messages`; what is pinned of a build, in `pins`; where the C is and
what it hashes to, in `sources`.
"""
