"""`lrpctl lrp list`: the policies as this node sees them, and what became of each of their frontends."""

import typer

from lrp_operator.agent.apimodel import Policies, PolicyFrontend, PolicyState
from lrp_operator.cli.asking import SOCKET, ApiSocket, ask, show
from lrp_operator.cli.output import Output, OutputOption, Table, print_tables

app = typer.Typer(help="Local redirect policies, as this node sees them.", no_args_is_help=True)

COLUMNS = ("Policy", "State", "Frontend", "On this node")


@app.command("list")
def list_policies(api_socket: ApiSocket = SOCKET, output: OutputOption = Output.TABLE) -> None:
    """List policies with their frontends: where each is redirected to, or why it is not; and exempt pods."""
    show(ask(api_socket, "policies", Policies), output, print_policies)


def print_policies(policies: Policies) -> None:
    """Print policies, one line for each backend of each frontend; then the exempt pods."""
    tables = [Table(COLUMNS, [row for policy in policies.policies for row in _rows(policy)])]
    if policies.exempt:
        rows = [(pod.pod, ", ".join(pod.frontends)) for pod in policies.exempt]
        tables.append(Table(("Exempt pod", "Reaches the original destination of"), rows))
    print_tables(*tables)


def _rows(policy: PolicyState) -> list[list[str]]:
    fates = [(frontend.frontend, fate) for frontend in policy.frontends for fate in _fates(frontend)]
    if not fates or not policy.accepted:
        fates = [("-", policy.message or policy.reason), *fates]
    rows, last = [], ("", "")
    for n, (frontend, fate) in enumerate(fates):
        start = (policy.policy, policy.reason) if n == 0 else ("", "")
        rows.append([*start, "" if frontend == last[0] else frontend, fate])
        last = (frontend, fate)
    return rows


def _fates(frontend: PolicyFrontend) -> list[str]:
    """What becomes of a frontend: a line for each backend, or the reason why there is none."""
    if frontend.redirected:
        return [f"-> {b.backend} {f'{b.pod} ' if b.pod else ''}({b.state})" for b in frontend.backends]
    state = "refused" if frontend.drop else "not redirected"
    why = ": ".join(filter(None, (frontend.reason, frontend.message)))
    return [f"{state}: {why}" if why else state]
