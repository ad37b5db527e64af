"""`lrpctl observe`: redirects as they happen.

The kernel reports redirects only while somebody watches, so there is no past to show: without -f the command watches
for a while and ends.
"""

import sys
import time
from typing import Annotated

import msgspec
import typer

from lrp_operator.agent.apimodel import Redirect
from lrp_operator.cli.asking import SOCKET, ApiSocket, sentences
from lrp_operator.cli.client import AgentError, Client, Stream
from lrp_operator.cli.output import Output, OutputOption, as_data, printable

SILENCE_SECONDS = 30.0
"""The agent says that it lives every few seconds; after so long without a word it is taken for dead."""


def observe(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch until Ctrl-C.")] = False,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Only tcp or udp.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Only this port, of frontend or backend.")] = None,
    duration: Annotated[float, typer.Option("--duration", help="Without -f: seconds to watch at most.")] = 10.0,
    last: Annotated[int, typer.Option("--last", help="Without -f: end after so many redirects.")] = 20,
    api_socket: ApiSocket = SOCKET,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show redirects as they happen: which pod asked for what, and which backend it got.

    Nothing is recorded while nobody watches, so without -f the command watches for --duration seconds or --last
    redirects, whichever comes first. One line for each; -o json prints one object a line.
    """
    query = {"protocol": protocol, "port": str(port) if port is not None else None}
    with sentences(), Client(api_socket).stream({name: value for name, value in query.items() if value}) as stream:
        sys.stderr.write("watching; Ctrl-C ends\n" if follow else f"watching for {duration:g} s\n")
        try:
            _watch(stream, output, until=None if follow else time.monotonic() + duration, most=None if follow else last)
        except KeyboardInterrupt:
            sys.stderr.write("\n")


def _watch(stream: Stream, output: Output, *, until: float | None, most: int | None) -> None:
    shown = dropped = 0
    while most is None or shown < most:
        line = stream.line(SILENCE_SECONDS if until is None else until - time.monotonic())
        if line is None:
            if until is None:
                raise AgentError("the agent has fallen silent")
            return
        if line.dropped > dropped:
            sys.stderr.write(f"{line.dropped - dropped} redirects lost: there are more than can be shown\n")
            dropped = line.dropped
        if line.redirect:
            sys.stdout.write(as_line(line.redirect, output))
            sys.stdout.flush()
            shown += 1


def as_line(redirect: Redirect, output: Output) -> str:
    """Write a redirect: a line for people, an object for programs."""
    if output is Output.JSON:
        return msgspec.json.encode(redirect).decode() + "\n"
    if output is Output.YAML:
        return "---\n" + as_data(msgspec.to_builtins(redirect), output)
    backend = f" to {redirect.backend}" if redirect.backend else ""
    pod = f" ({redirect.backend_pod})" if redirect.backend_pod else ""
    at_link = f"link {redirect.ifindex}" if redirect.ifindex else ""
    client = redirect.client or at_link or f"netns {redirect.netns_cookie}"
    caller = f" [{redirect.command} {redirect.pid}]" if redirect.pid else ""
    moment = redirect.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    policy = f" by {redirect.policy}" if redirect.policy else ""
    return printable(
        f"{moment}  {client}{caller} {redirect.hook} {redirect.frontend} {redirect.action}{backend}{pod}{policy}\n"
    )
