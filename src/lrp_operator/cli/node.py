"""The commands that are about this node, to be added to `lrpctl`. All but `doctor` ask its agent."""

import typer

from lrp_operator.cli import bpf, lrp, service
from lrp_operator.cli.doctor import command as doctor
from lrp_operator.cli.observe import observe
from lrp_operator.cli.status import status


def add_to(app: typer.Typer) -> None:
    """Add the commands: doctor, status, service, lrp, bpf, observe."""
    app.command("doctor", help=doctor.HELP)(doctor.doctor)
    app.command("status")(status)
    app.add_typer(service.app, name="service")
    app.add_typer(lrp.app, name="lrp")
    app.add_typer(bpf.app, name="bpf")
    app.command("observe")(observe)
