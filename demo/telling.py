"""How the demonstration speaks: prose, commands with their real output, and a loud end where that is not as told."""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from subprocess import CompletedProcess

from lab import Place

WIDTH = 100


class NotAsToldError(Exception):
    """What was shown is not what should have been; the text says what was expected."""


def _styled(text: str, code: str) -> str:
    """Colour only what a person sees."""
    on = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\033[{code}m{text}\033[0m" if on else text


def chapter(title: str, *paragraphs: str) -> None:
    """Begin a part of the story."""
    print("\n" + _styled(f"== {title}", "1;36"))
    for paragraph in paragraphs:
        say(paragraph)


def say(text: str) -> None:
    """Tell something, as lines of comment."""
    for line in textwrap.wrap(" ".join(text.split()), WIDTH - 2, break_on_hyphens=False):
        print(_styled(f"# {line}", "2"))
    sys.stdout.flush()


def typed(where: str, command: str) -> None:
    """Show a command as a person types it there."""
    print(_styled(f"{where}$", "32") + f" {_styled(command, '1')}", flush=True)


def shown(output: str) -> None:
    """Show what a command said."""
    sys.stdout.write(output if output.endswith("\n") or not output else output + "\n")
    sys.stdout.flush()


def run(where: str, place: Place, command: str, *, real: Sequence[str] = (), expect: Sequence[str] = ()) -> str:
    """Show a command, run it in a place, and show its output, which must hold every `expect` (regular expressions).

    real: what is run, where a shell on worker-1 would have something that this one has not (a PATH, a variable).
    """
    typed(where, command)
    done: CompletedProcess[str] = place.run(real or ["sh", "-c", command], check=False)
    output = done.stdout + done.stderr
    shown(output)
    check(output, expect)
    return output


def check(output: str, expect: Sequence[str]) -> None:
    """Raise NotAsToldError unless the output holds all that is expected."""
    for pattern in expect:
        if not re.search(pattern, output):
            raise NotAsToldError(f"expected output that matches {pattern!r}, but it was:\n{output or '(nothing)'}")


def failed(error: BaseException) -> None:
    """Say loudly that the demonstration failed."""
    sys.stdout.flush()
    print("\n" + _styled(f"FAILED: {error}", "1;31"), file=sys.stderr)
