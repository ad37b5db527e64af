"""`lrpctl bpf ...`: what the kernel's maps hold, read back; the last word when other lists are in doubt."""

import typer

from lrp_operator.agent.apimodel import BpfLb, BpfSkip, KernelEntry, KernelSlot
from lrp_operator.cli.asking import SOCKET, ApiSocket, ask, show
from lrp_operator.cli.output import Output, OutputOption, Table, print_tables

app = typer.Typer(help="What the kernel's maps hold.", no_args_is_help=True)
lb = typer.Typer(help="Frontends and backends in the kernel.", no_args_is_help=True)
skip = typer.Typer(help="Exempt network namespaces in the kernel.", no_args_is_help=True)
app.add_typer(lb, name="lb")
app.add_typer(skip, name="skip")


@lb.command("list")
def list_lb(api_socket: ApiSocket = SOCKET, output: OutputOption = Output.TABLE) -> None:
    """List frontends and their backends as the kernel has them, with slots, flags and generations."""
    show(ask(api_socket, "bpf/lb", BpfLb), output, print_lb)


@skip.command("list")
def list_skip(api_socket: ApiSocket = SOCKET, output: OutputOption = Output.TABLE) -> None:
    """List network namespaces that reach a frontend's original destination (skipRedirectFromBackend)."""
    show(ask(api_socket, "bpf/skip", BpfSkip), output, print_skip)


def print_lb(answer: BpfLb) -> None:
    """Print frontends, one line for each slot."""
    rows = [row for entry in answer.entries for row in _rows(entry)]
    print_tables(Table(("ID", "Frontend", "Flags", "Generation", "Slot", "Backend", "Pod"), rows))


def _rows(entry: KernelEntry) -> list[list[str]]:
    start = [str(entry.id), entry.frontend, ",".join(entry.flags) or "-", str(entry.generation)]
    rows = _run(start, entry.backends)
    return rows if entry.original is None else rows + _run(["", "", "exempt pods:", ""], entry.original)


def _run(start: list[str], slots: list[KernelSlot]) -> list[list[str]]:
    listed = [[str(slot.slot), slot.backend, slot.pod or "-"] for slot in slots] or [["-", "-", "-"]]
    return [[*(start if n == 0 else [""] * len(start)), *slot] for n, slot in enumerate(listed)]


def print_skip(answer: BpfSkip) -> None:
    """Print exemptions."""
    rows = [
        (f"link {entry.ifindex}" if entry.ifindex else str(entry.netns_cookie), entry.frontend, entry.pod or "-")
        for entry in answer.entries
    ]
    print_tables(Table(("Netns cookie", "Frontend", "Pod"), rows))
