"""`lrpctl service list`: this node's frontends, in the columns of `cilium-dbg service list`, and who uses them."""

import typer

from lrp_operator.agent.apimodel import ServiceFrontend, Services
from lrp_operator.cli.asking import SOCKET, ApiSocket, age, ask, show
from lrp_operator.cli.output import Output, OutputOption, Table, print_tables

app = typer.Typer(help="This node's frontends, as the agent has them.", no_args_is_help=True)

COLUMNS = ("ID", "Frontend", "Service Type", "Backend", "Policy", "Hits", "Last hit")


@app.command("list")
def list_services(api_socket: ApiSocket = SOCKET, output: OutputOption = Output.TABLE) -> None:
    """List frontends with their backends, the policy that owns them, and when they were last used.

    LocalRedirect: a policy sends it to pods of this node. ClusterIP: it goes where its Service says; backends marked
    (kube-proxy) are kube-proxy's to choose. (pending): not in the kernel yet, see lrpctl status.
    """
    show(ask(api_socket, "services", Services), output, print_services)


def print_services(services: Services) -> None:
    """Print frontends, one line for each backend."""
    print_tables(Table(COLUMNS, [row for frontend in services.frontends for row in _rows(frontend)]))


def _rows(frontend: ServiceFrontend) -> list[list[str]]:
    backends = [f"{n} => {b.backend} ({b.state})" for n, b in enumerate(frontend.backends, 1)]
    if not backends:
        backends = ["none: connects are refused" if frontend.refuse else "left to kube-proxy"]
    start = [str(frontend.id or "-"), frontend.frontend, frontend.type]
    end = [frontend.policy or "-", _hits(frontend), _last_hit(frontend)]
    rows = [["", "", "", backend, "", "", ""] for backend in backends]
    rows[0] = [*start, backends[0], *end]
    return rows


def _hits(frontend: ServiceFrontend) -> str:
    """Write the counters; what went wrong only where it did."""
    hits = frontend.hits
    if hits is None:
        return "-"
    others = [f"{count} {name}" for name in ("refused", "skipped", "failed") if (count := getattr(hits, name))]
    return f"{hits.redirected} ({', '.join(others)})" if others else str(hits.redirected)


def _last_hit(frontend: ServiceFrontend) -> str:
    if frontend.last_hit:
        return f"{age(frontend.last_hit)} ago"
    if frontend.hits is None:
        return "-"
    return "before the agent" if frontend.hit_before_start else "never"
