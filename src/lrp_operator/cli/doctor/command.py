"""The command: looks, has it judged, prints it, and ends with an exit code that a script can use."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from lrp_operator.cli.client import EXIT_NOT_WELL
from lrp_operator.cli.cluster import EXIT_NO_ANSWER, ApiServer, Context, Kubeconfig
from lrp_operator.cli.output import Cell, Output, OutputOption, Table, as_data, print_tables

if TYPE_CHECKING:
    from lrp_operator.cli.doctor.diagnose import Report

HELP = """Check whether this node can redirect, in which of the four modes, and what stands in the way.

Works without an agent, on the node (as root) or in the agent's container, and changes nothing.

\b
-o json prints {"checks": [{name, state, text}], "modes": [{mode, means, values, verdict, reasons}]}
state is "fine", "note", "wrong" or "unseen"; verdict is "yes", "limited", "no" or "unknown".

Exit codes: 0: all modes (or the one that --mode names) can be, perhaps with limits; 1: one can't; 2: wrong usage;
3: it can't be told, for want of rights.
"""

_BPF_ROOT = Path("/sys/fs/bpf/lrp-operator")
_STYLES = {"wrong": "red", "no": "red"} | dict.fromkeys(("note", "unseen", "limited", "unknown"), "yellow")


def doctor(
    *,
    mode: Annotated[
        str | None,
        typer.Option("--mode", metavar="sockets|tc|replace|host-only", help="Let the exit code speak of one mode."),
    ] = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    bpf_root: Annotated[Path, typer.Option("--bpf-root", help="The agent's folder for pins.")] = _BPF_ROOT,
    cgroup_root: Annotated[
        Path | None, typer.Option("--cgroup-root", help="Cgroup v2 directory that all pods are below.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check this node."""
    from lrp_operator.cli.doctor.diagnose import Can, ModeName, diagnose  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.doctor.examine import Examination  # noqa: PLC0415 -- the same
    from lrp_operator.cli.doctor.kinds import cilium_kinds  # noqa: PLC0415 -- the same

    if mode is not None and mode not in set(ModeName):
        raise typer.BadParameter(f"must be one of {', '.join(ModeName)}", param_hint="--mode")
    report = diagnose(Examination(bpf_root, cgroup_root).findings(*cilium_kinds(kubeconfig, context, api_server)))
    if output is Output.TABLE:
        _print(report)
    else:
        sys.stdout.write(as_data(msgspec.to_builtins(report), output))
    asked = {verdict.verdict for verdict in report.modes if mode in (None, verdict.mode)}
    if Can.NO in asked:
        raise typer.Exit(EXIT_NOT_WELL)
    if Can.UNKNOWN in asked:
        raise typer.Exit(EXIT_NO_ANSWER)


def _print(report: "Report") -> None:
    checks = [(check.name, Cell(check.state, _STYLES.get(check.state, "green")), check.text) for check in report.checks]
    modes = [
        (
            one.mode.value if number == 0 else "",
            Cell(one.verdict.words if number == 0 else "", _STYLES.get(one.verdict, "green")),
            line,
        )
        for one in report.modes
        for number, line in enumerate([one.means, *(f"- {reason}" for reason in one.reasons)])
    ]
    print_tables(Table(("Looked at", "State", "Found"), checks), Table(("Mode", "Verdict", "What it is"), modes))
