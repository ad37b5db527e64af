"""The commands that ask the cluster through its API, to be added to `lrpctl`. They work from anywhere kubectl does."""

import typer

from lrp_operator.cli import describe, explain, get, why


def add_to(app: typer.Typer) -> None:
    """Add the commands: get, describe, explain, why."""
    app.command("get", help=get.HELP)(get.get)
    app.command("describe", help=describe.HELP)(describe.describe)
    app.command("explain", help=explain.HELP)(explain.explain)
    app.command("why", help=why.HELP)(why.why)
