"""From C in bpf/ to programs in the kernel, by BCC in a short-lived child process.

LLVM would stay in the agent's memory for good, so a child compiles, loads, pins, reports on standard output and exits:
`run` starts it, `__main__` is the child and the only importer of bcc. Another way of getting programs into the kernel
(objects compiled beforehand) would replace `__main__` and nothing else.

What the child is told and what it answers is in `messages`; where the C is and what it hashes to, in `sources`.
"""
