"""`lrpctl explain`: what policies in files would do in the live cluster. Nothing is written.

The cluster is read as it is, the policies are put into it as if they had just been applied, and the agents' own
resolver says what comes of that, for the cluster and for each node.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrp_operator.cli.cluster import (
    EXIT_USAGE,
    ApiServer,
    Cluster,
    Context,
    Kubeconfig,
    Namespace,
    not_there,
    show,
)
from lrp_operator.cli.nodetable import nodes_table
from lrp_operator.cli.output import Cell, Output, OutputOption, Table, complain, print_tables, printable

if TYPE_CHECKING:
    from lrp_operator.agent.config import Written
    from lrp_operator.api.objects import Policy
    from lrp_operator.cli.loading import Loaded
    from lrp_operator.cli.planning import FrontendPlan, Plans, PolicyPlan
    from lrp_operator.cli.reader import Reader
    from lrp_operator.resolve.options import ResolveOptions

EXIT_WOULD_NOT_WORK = 1
MAX_PROBLEMS = 20

HELP = """Say what policies would do if they were applied now. Nothing is written.

Reads the live policies, Services, nodes, their reports and the pods of the policies' namespaces, and resolves them as
the agents do. Of the files only policies count: a Service or pod that is not in the cluster yet is not there.

\b
Examples:
  lrpctl explain -f policy.yaml
  lrpctl explain -f policy.yaml --address-matcher-cidrs 169.254.0.0/16,fd00::/8
  lrpctl explain -f policies/ --config agent.yaml -o json
  kubectl get clrp web -o yaml | sed s/8080/8081/ | lrpctl explain -f -

Settings that can forbid a policy (which addresses and namespaces, how many frontends) are the agents': give their file
with --config, or the single flags. Without, they are read from the chart's ConfigMap; where it can't be found, nothing
is taken to be forbidden. The answer says which.

\b
Exit codes:
  0  every policy would be accepted and have a frontend (though perhaps no pod to serve it yet)
  1  a policy would be rejected, or have no frontend; the output says why
  2  the files can't be read, or wrong usage
  3  the cluster can't be asked

\b
-o json prints {"assumed": [...], "policies": [POLICY, ...]}; a POLICY has
  policy, change (new, replaced, unchanged), works, accepted, reason, message, problems, nodesRedirecting,
               nodesHindered (a pod could serve, but their agents redirect nothing)
  frontends    [{frontend, nodesRedirecting, reason, message}]
  nodes        [{node, problem, frontends: [{frontend, fate, backends: [{address, pod}], reason, message}]}]
  takes        [{frontend, policy}]: what other policies would lose to it
fate is "redirected", "refused" or "usual".
"""

KNOWN = "The agents' settings are taken from {}."
UNKNOWN = (
    "The agents' settings are not known ({}): every address and namespace is taken to be allowed, and any number of"
    " frontends (--config, --address-matcher-cidrs and others say otherwise)."
)
OTHERS = "Not looked at, as only what is in the cluster counts: {}."

Files = Annotated[
    list[str],
    typer.Option("--filename", "-f", metavar="PATH", help="A file, a directory, or - for standard input. Repeatable."),
]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The agents' file of settings.")]
Cidrs = Annotated[
    str | None,
    typer.Option("--address-matcher-cidrs", metavar="CIDR,...", help="Addresses that policies may take."),
]
Namespaces = Annotated[
    str | None,
    typer.Option("--address-matcher-namespaces", metavar="NAME,...", help="Namespaces that may name addresses."),
]
MaxFrontends = Annotated[
    str | None, typer.Option("--max-frontends-per-namespace", metavar="NUMBER", help="Frontends of one namespace.")
]


def explain(
    *,
    filename: Files,
    config: Config = None,
    address_matcher_cidrs: Cidrs = None,
    address_matcher_namespaces: Namespaces = None,
    max_frontends_per_namespace: MaxFrontends = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    namespace: Namespace = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what policies would do; HELP says more."""
    flags = {
        "localRedirectPolicies.addressMatcherCIDRs": address_matcher_cidrs,
        "localRedirectPolicies.addressMatcherNamespaces": address_matcher_namespaces,
        "localRedirectPolicies.maxFrontendsPerNamespace": max_frontends_per_namespace,
    }
    options = _options(config, flags)
    cluster = Cluster(kubeconfig, context, api_server, namespace)
    policies, assumed = _policies(filename, cluster.namespace)

    from lrp_operator.cli.loading import settings  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.planning import plan  # noqa: PLC0415 -- the same

    if config is None and not any(flags.values()):
        found = cluster.ask(settings)
        options = options if isinstance(found, str) else _options(found, flags)
        assumed.append(UNKNOWN.format(found) if isinstance(found, str) else KNOWN.format(found.origin))
    loaded, missing = cluster.ask(lambda reader: _load(reader, policies))
    plans = plan(policies, options, loaded, missing, assumed)
    show(plans, output, print_plans)
    if not all(policy.works for policy in plans.policies):
        raise typer.Exit(EXIT_WOULD_NOT_WORK)


def _options(config: "Path | Written | None", flags: dict[str, str | None]) -> "ResolveOptions":
    """Read the agents' settings, as the agents do."""
    from lrp_operator.agent.config import BY_KEY, ConfigError, load_settings  # noqa: PLC0415 -- slow to import
    from lrp_operator.resolve.options import ClusterIPs  # noqa: PLC0415 -- the same

    try:
        settings, _ = load_settings(config, {}, flags)
    except ConfigError as error:
        text = str(error)
        for key in flags:  # these have the names here that people know from the file
            text = text.replace(f"--{BY_KEY[key].flag}", f"--{BY_KEY[key].flag.removeprefix('lrp-')}")
        not_there(text)
    return settings.local_redirect_policies.resolve_options(ClusterIPs.OMIT)


def _policies(paths: list[str], namespace: str) -> "tuple[list[Policy], list[str]]":
    """Read the policies of files, and say what else of them does not count."""
    from lrp_operator.api.objects import Policy  # noqa: PLC0415 -- slow to import
    from lrp_operator.sources.files import UnreadableInput, read_paths  # noqa: PLC0415 -- the same

    try:
        objects = read_paths(paths, sys.stdin.buffer, namespace)
    except UnreadableInput as error:
        for problem in error.problems[:MAX_PROBLEMS]:
            complain(str(problem))
        raise typer.Exit(EXIT_USAGE) from None
    policies = [obj for obj in objects if isinstance(obj, Policy)]
    if not policies:
        not_there(f"there is no CiliumLocalRedirectPolicy in {', '.join(paths)}")
    others = [f"{type(obj).__name__} {obj.metadata.key.removeprefix('/')}" for obj in objects if obj not in policies]
    return policies, [OTHERS.format(", ".join(others))] if others else []


async def _load(reader: "Reader", policies: "list[Policy]") -> "tuple[Loaded, set[str]]":
    """Read what the policies meet, and which of their namespaces are not there. Raises NoAnswer."""
    from lrp_operator.cli.loading import load, missing_namespaces, names_address  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.reader import together  # noqa: PLC0415 -- the same

    namespaces = {policy.metadata.namespace for policy in policies}
    loaded, missing = await together(
        load(reader, namespaces, everywhere=any(map(names_address, policies))), missing_namespaces(reader, namespaces)
    )
    return loaded, missing


# --- For people -------------------------------------------------------------------------------------------------------


def print_plans(plans: "Plans") -> None:
    """Print what each policy would do, then what was assumed."""
    for number, policy in enumerate(plans.policies):
        if number:
            sys.stdout.write("\n")
        _print_plan(policy)
    for sentence in plans.assumed:
        sys.stdout.write(f"\nNote: {printable(sentence)}\n")


def _print_plan(policy: "PolicyPlan") -> None:
    sys.stdout.write(f"{printable(_headline(policy))}\n")
    sys.stdout.writelines(f"  {printable(problem)}\n" for problem in policy.problems)
    if policy.accepted and policy.message:
        sys.stdout.write(f"  {printable(policy.message)}\n")
    sys.stdout.writelines(f"  It would take {taken.frontend} from policy {taken.policy}.\n" for taken in policy.takes)
    if policy.problems:
        return
    if policy.frontends:
        sys.stdout.write("\n")
        rows = [_row(frontend, policy) for frontend in policy.frontends]
        print_tables(Table(("Frontend", "Redirected on", "Why on none"), rows))
    if policy.nodes and policy.frontends:
        sys.stdout.write("\n")
        print_tables(nodes_table(policy.nodes))


def _headline(policy: "PolicyPlan") -> str:
    """Say in a sentence whether it would work."""
    what = {"new": "is new", "replaced": "would replace the live one", "unchanged": "is the same as the live one"}[
        policy.change
    ]
    start = f"Policy {policy.policy} {what}"
    if not policy.accepted:
        return f"{start} and would be rejected: {policy.reason}: {policy.message}"
    if policy.problems:
        return f"{start} and can't be applied:"
    if not policy.frontends:
        return f"{start} and would redirect nothing: {policy.reason}:"
    if not policy.works:
        return f"{start} and would redirect nothing: others have all of its frontends."
    nodes = f"{policy.nodes_redirecting} of {len(policy.nodes)} nodes"
    more = f", and on {policy.nodes_hindered} more but for the agents there" if policy.nodes_hindered else ""
    return f"{start} and would be accepted; it would redirect on {nodes}{more}."


def _row(frontend: "FrontendPlan", policy: "PolicyPlan") -> list[Cell | str]:
    count = f"{frontend.nodes_redirecting} of {len(policy.nodes)} nodes"
    why = ": ".join(filter(None, (frontend.reason, frontend.message))) or "-"
    return [frontend.frontend, Cell(count, "green" if frontend.nodes_redirecting else "yellow"), why]
