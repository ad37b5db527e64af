"""`python -m benchmarks`: measure, print, and leave the figures in benchmarks/results/."""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import cluster, cluster_lines, control, report, tc_report
from benchmarks.plot import svg
from benchmarks.ratios import ratio
from benchmarks.rows import all_rows, choose, packet_rows
from benchmarks.sockets import TESTS, Effort, Test, measure, tell
from benchmarks.tc import TC_TESTS, measure_ends, measure_packets
from benchmarks.topology import BenchmarkError
from lab import CallFailedError

PARTS = ["sockets", "tc", "control", "cluster"]
RESULTS = Path(__file__).parent / "results"
_THOROUGH, _QUICK = (4, 400), (1, 40)  # rounds and cycles of the socket part
_TC_THOROUGH, _TC_QUICK = (2, 200), (1, 20)  # of the TC part: each round compiles five builds
_REPEATS, _QUICK_REPEATS = 7, 2  # of the control part

_EPILOG = """\
parts:
  sockets   what each call costs a client that is redirected, or is not; the options below are for this part
  tc        what a packet costs that is rewritten on its way; the options below are for this part if it is named
  control   what the agent takes: time to program frontends and to start, memory
  cluster   what agent and controller take on a real API server; only if it is named, or with --all: five minutes, and
            some more at the first time, when etcd and kube-apiserver are built

examples:
  python -m benchmarks                              the first three parts (make bench)
  python -m benchmarks --quick                      the same in a tenth of the time, with wide intervals
  python -m benchmarks sockets --only udp-connect,dns-calls --rows 'ours-1k,lru*'
                                                    some columns of some rows (* stands for anything)
  python -m benchmarks sockets --rows 'ours-1k,miss-1k,also*' --also /tmp/bpf
                                                    a variant of bpf/, interleaved with the standing one
  python -m benchmarks sockets --list               the names of rows and tests

how to read it:
  Every row's client does the same calls on the same CPU, in turns. "direct" dials the pod itself with nothing attached;
  a ratio of 1.04 means that the call takes 4 % longer than there. An interval that holds 1 says: no difference seen.
  Absolute times are this machine's; ratios carry over better, and best those between rows of one run.

It takes root, gcc and two CPUs. It works in network namespaces and cgroups of its own and removes them.
"""


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What redirecting costs: each socket call, and each packet, beside the same without us.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this part (default: the first three)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the cycles, in one round")
    parser.add_argument("--cycles", type=int, metavar="N", help=f"so many cycles in all (default: {_THOROUGH[1]})")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"set all up so often (default: {_THOROUGH[0]})")
    parser.add_argument("--only", type=_names, default=[], metavar="TEST,...", help="only these tests (columns)")
    parser.add_argument("--rows", type=_names, default=[], metavar="ROW,...", help="only these rows, besides direct")
    parser.add_argument("--all", action="store_true", help="also what takes long: some rows, the cluster part")
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="another build as a further row: a folder like bpf/, or a checkout with bpf/ and src/; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="name the rows and tests, and end")
    return parser.parse_args()


def _chosen_tests(names: list[str]) -> list[Test]:
    unknown = set(names) - {test.name for test in TESTS}
    if unknown:
        raise BenchmarkError(f"no test is named {', '.join(sorted(unknown))}; see --list")
    return [test for test in TESTS if not names or test.name in names]


def _machine() -> dict[str, str]:
    """What the figures are figures of. `iptables` is one of two things, and its version says which."""
    found = {"kernel": platform.release(), "architecture": platform.machine(), "cpus": str(os.cpu_count())}
    for tool in ("iptables", "nft"):
        if shutil.which(tool):
            found[tool] = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return found


def _leave(name: str, text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(text)
    print(f"written: {RESULTS / name}")


def _as_json(figures: Mapping[str, Any]) -> str:
    whole = {"taken": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine(), **figures}
    return json.dumps(whole, indent=1) + "\n"


def _effort(arguments: argparse.Namespace, usual: tuple[int, int]) -> Effort:
    rounds = arguments.rounds or usual[0]
    return Effort(rounds, max(1, (arguments.cycles or usual[1]) // rounds))


def _sockets(arguments: argparse.Namespace) -> None:
    tests = _chosen_tests(arguments.only)
    rows = choose(list(all_rows(arguments.also)), arguments.rows, everything=arguments.all)
    effort = _effort(arguments, _QUICK if arguments.quick else _THOROUGH)
    taken = measure(rows, tests, effort)
    ratios = report.compared(taken.samples, ratio)
    for line in report.lines(taken, ratios, rows, effort):
        print(line)
    _leave("sockets.json", _as_json(report.data(taken, ratios, rows, effort)))
    _leave("sockets.svg", svg(ratios, rows))


def _tc(arguments: argparse.Namespace) -> None:
    named = arguments.part == "tc"
    tests = [test for test in TC_TESTS if not named or test in _chosen_tests(arguments.only)]
    effort = _effort(arguments, _TC_QUICK if arguments.quick else _TC_THOROUGH)
    also = arguments.also if named else []
    packets = measure_packets(effort, also)
    for line in tc_report.packet_lines(packets, effort):
        print(line)
    ends = list(measure_ends(effort, tests, arguments.rows if named else [], also, everything=arguments.all))
    for one in ends:
        for line in tc_report.ends_lines(one, effort):
            print(line)
    for line in (*tc_report.packet_targets(packets), *tc_report.ends_targets(ends)):
        print(line)
    figures = {"packets": tc_report.packet_data(packets, effort), "end_to_end": tc_report.ends_data(ends, effort)}
    _leave("tc.json", _as_json(figures))


def _control(arguments: argparse.Namespace) -> None:
    measures = control.measure(_QUICK_REPEATS if arguments.quick else _REPEATS, tell)
    for line in control.lines(measures):
        print(line)
    _leave("control.json", _as_json(control.data(measures)))


def _cluster(arguments: argparse.Namespace) -> None:
    lines = cluster.measure(cluster_lines.QUICK if arguments.quick else cluster_lines.THOROUGH, tell)
    for line in cluster_lines.table(lines):
        print(line)
    _leave("cluster.json", _as_json(cluster_lines.data(lines)))


def _list(also: list[Path]) -> None:
    shown = list(all_rows(also))
    for row in (*shown, *(row for row in packet_rows(also) if row.name not in {other.name for other in shown})):
        print(f"{row.name:24}{row.what}{' (with --all)' if row.optional else ''}")
    print()
    for test in TESTS:
        print(f"{test.name:24}{test.what}")


def main() -> int:
    """Run what was asked for."""
    arguments = _arguments()
    if arguments.list:
        _list(arguments.also)
        return 0
    if os.geteuid():
        print("benchmarks: it takes root: namespaces, cgroups, eBPF", file=sys.stderr)
        return 1
    try:
        print(", ".join(f"{name}: {what}" for name, what in _machine().items()))
        if arguments.part in {None, "sockets"}:
            _sockets(arguments)
        if arguments.part in {None, "tc"}:
            _tc(arguments)
        if arguments.part in {None, "control"}:
            _control(arguments)
        if arguments.part == "cluster" or (arguments.part is None and arguments.all):
            _cluster(arguments)
    except (BenchmarkError, CallFailedError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("\nstopped; everything is removed", file=sys.stderr)
        return 128 + signal.Signals[str(stopped) or "SIGINT"]
    return 0


if __name__ == "__main__":
    sys.exit(main())
