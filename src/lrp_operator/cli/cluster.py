"""What the commands that ask the cluster have in common: kubectl's flags, who we are, and what goes wrong, in words.

    with the flags ──▶ Cluster ──ask(question)──▶ Reader ──▶ objects, or one sentence and an exit code

Reads only: nothing that these commands do changes anything in the cluster. What takes long to import (HTTP, readers of
kubeconfigs) is imported when a cluster is asked, not before.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from lrp_operator.cli.output import Output, as_data, complain

if TYPE_CHECKING:
    from lrp_operator.cli.reader import Reader
    from lrp_operator.sources.kube.credentials import Credentials

EXIT_USAGE = 2
EXIT_NO_ANSWER = 3
EXIT_CODES = "2: wrong usage, or what is named is not there; 3: the cluster can't be asked"

A = TypeVar("A")

Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", envvar="KUBECONFIG", metavar="FILE", help="Who you are. Default: ~/.kube/config."),
]
Context = Annotated[str | None, typer.Option("--context", metavar="NAME", help="The kubeconfig's context to use.")]
ApiServer = Annotated[
    str, typer.Option("--api-server", metavar="URL", help="The API server, where the kubeconfig's address is no way.")
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NAME", help="Default: the context's, else the one named default."),
]


class Cluster:
    """A cluster that can be asked, and the namespace that is meant where none is named."""

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        api_server: str = "",
        namespace: str | None = None,
    ) -> None:
        """Ends the program where it is not known whom to ask."""
        from lrp_operator.sources.kube.errors import CredentialsError  # noqa: PLC0415 -- slow to import

        try:
            self._credentials, usual = credentials_for(kubeconfig, context, api_server)
        except CredentialsError as error:
            _give_up(f"{error}. Name a kubeconfig with --kubeconfig or KUBECONFIG.", EXIT_NO_ANSWER)
        self.namespace = namespace or usual or "default"

    def ask(self, question: "Callable[[Reader], Awaitable[A]]") -> A:
        """Ask, and return the answer; ends the program with a sentence where there is none."""
        import asyncio  # noqa: PLC0415 -- slow to import

        from lrp_operator.cli.reader import NoAnswer, Reader  # noqa: PLC0415 -- the same

        async def answer() -> A:
            async with Reader(self._credentials) as reader:
                return await question(reader)

        try:
            return asyncio.run(answer())
        except NoAnswer as error:
            _give_up(str(error), EXIT_NO_ANSWER)


def credentials_for(kubeconfig: str | None, context: str | None, server: str) -> "tuple[Credentials, str]":
    """Choose who we are, and the namespace that goes with it: a pod's service account, if there is one and no flag.

    Raises CredentialsError.
    """
    from lrp_operator.sources.kube import credentials  # noqa: PLC0415 -- slow to import

    if kubeconfig is None and context is None and credentials.ServiceAccount.is_here():
        file = credentials.SERVICE_ACCOUNT / "namespace"
        return credentials.ServiceAccount(server), file.read_text(encoding="ascii").strip() if file.exists() else ""
    chosen = credentials.Kubeconfig(kubeconfig or str(Path("~/.kube/config").expanduser()), context, server)
    return chosen, chosen.namespace


def not_there(sentence: str) -> NoReturn:
    """End the program because something that was named does not exist."""
    _give_up(sentence, EXIT_USAGE)


def _give_up(sentence: str, code: int) -> NoReturn:
    complain(sentence)
    raise typer.Exit(code)


def show(answer: Any, output: Output, print_for_people: Callable[[Any], None]) -> None:
    """Print an answer for people, or whole as data; a full disk is noticed here."""
    import sys  # noqa: PLC0415

    import msgspec  # noqa: PLC0415

    if output is Output.TABLE:
        print_for_people(answer)
    else:
        sys.stdout.write(as_data(msgspec.to_builtins(answer), output))
    sys.stdout.flush()


def full_name(written: str, namespace: str) -> str:
    """Complete a name to "namespace/name"."""
    return written if "/" in written else f"{namespace}/{written}"
