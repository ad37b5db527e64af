"""The entry point of `lrpctl`. Each command, or group of commands, is a file beside this one.

Starting must not be felt, so what only one command needs is imported by that command when it runs.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lrp_operator import __version__
from lrp_operator.cli import node, remote, resolve
from lrp_operator.cli.output import complain

EXIT_CANT_WRITE = 2

HELP = """Shows what local redirect policies do: in the cluster, on this node, or from manifests.

\b
From anywhere that kubectl works:
  lrpctl get -A                                 policies: accepted, programmed, on how many nodes
  lrpctl describe kube-system/nodelocaldns      all about one policy, node by node
  lrpctl explain -f policy.yaml                 what it would do if it were applied; nothing is written
  lrpctl why client 169.254.169.254:80          what happens to that connection of that pod, step by step

\b
On a node, and from manifests:
  lrpctl resolve --node worker-1 -f examples/   what a node would redirect, from manifests alone
  lrpctl doctor                                 can this node redirect, and in which modes?
  lrpctl status                                 is this node's redirecting as it should be?
  lrpctl service list                           this node's frontends, their backends and hits
  lrpctl observe --protocol udp --port 53 -f    redirects as they happen
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("resolve", help=resolve.HELP)(resolve.resolve)
node.add_to(app)
remote.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"lrpctl {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run `lrpctl`, or `kubectl lrp`."""
    called = Path(sys.argv[0]).name
    try:
        app(prog_name="kubectl lrp" if called.startswith(("kubectl-lrp", "kubectl_lrp")) else "lrpctl")
    except OSError as error:  # a full disk behind standard output; commands tell of their own files and sockets
        complain(f"the answer can't be written: {error.strerror or error}")
        raise SystemExit(EXIT_CANT_WRITE) from None
