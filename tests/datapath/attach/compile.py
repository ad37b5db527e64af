"""Run as a program: compile a C file with BCC and pin functions of it. Arguments: the file, a bpffs folder, functions.

The C sees the folder as PIN, a string, for the maps that it wants pinned there.
"""

import sys
from pathlib import Path

from lrp_operator.kernel import bpf
from lrp_operator.loader.__main__ import _import_bcc

source, folder, *functions = sys.argv[1:]
module = _import_bcc().BPF(text=Path(source).read_text(), cflags=[f'-DPIN="{folder}/"'])
for name in functions:
    bpf.pin(bpf.Fd(module.load_func(name, bpf.ProgType.SCHED_CLS).fd), Path(folder, name))
