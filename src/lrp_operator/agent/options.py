"""Command line options that agents and the controller share."""

from typing import Any

import typer

from lrp_operator.agent.config import BY_KEY


def setting(key: str, metavar: str) -> Any:
    """Make the option that overrides a setting of the file and the environment. key: as Helm's values spell it."""
    found = BY_KEY[key]
    text = f"{found.help} In the file: {key}."
    return typer.Option(f"--{found.flag}", help=text, metavar=metavar, rich_help_panel="Settings")
