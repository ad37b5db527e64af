"""The commands that ask this node's agent, to be added to `lrpctl`."""

import typer

from lrp_operator.cli import bpf, lrp, service
from lrp_operator.cli.observe import observe
from lrp_operator.cli.status import status


def add_to(app: typer.Typer) -> None:
    """Add the commands: status, service, lrp, bpf, observe."""
    app.command("status")(status)
    app.add_typer(service.app, name="service")
    app.add_typer(lrp.app, name="lrp")
    app.add_typer(bpf.app, name="bpf")
    app.command("observe")(observe)
