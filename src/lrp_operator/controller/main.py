"""The command line of `lrp-controller`: what it is told, checked, and passed on to `run`.

What takes long to import comes after the arguments are checked, so that --help is quick.
"""

import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lrp_operator import __version__
from lrp_operator.agent.config import ConfigError, load_settings
from lrp_operator.agent.logs import LogFormat, set_up
from lrp_operator.agent.options import setting
from lrp_operator.controller import EXIT_USAGE

if TYPE_CHECKING:
    from lrp_operator.controller.herald import Regarding
    from lrp_operator.sources.kube.credentials import Credentials

app = typer.Typer(
    name="lrp-controller",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"lrp-controller {__version__}\n")
        raise typer.Exit


Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", envvar="KUBECONFIG", help="Credentials, outside of a pod.")
]
Context = Annotated[str | None, typer.Option("--context", help="The kubeconfig's context.")]
ApiServer = Annotated[
    str, typer.Option("--api-server", help="The API server's URL, where it can't be reached as usual.")
]


@app.callback(
    invoke_without_command=True,
    help="Says what became of every CiliumLocalRedirectPolicy of the cluster, in its status, until it is told to stop "
    "(SIGTERM). Redirects don't need it. In a pod it uses the service account, elsewhere a kubeconfig.",
    epilog="Settings come from flags, else LRP_* variables, else --config, else defaults; give agents the same.",
)
def controller(
    command: typer.Context,
    *,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    install_crds: Annotated[
        bool, typer.Option("--install-crds", help="Install and upgrade the CustomResourceDefinitions.")
    ] = False,
    lease: Annotated[
        str,
        typer.Option(
            "--leader-elect", metavar="NAMESPACE/NAME", help="The Lease that decides which of several writes."
        ),
    ] = "",
    despite_cilium: Annotated[
        bool, typer.Option("--despite-cilium", help="Work even if Cilium is found in the cluster.")
    ] = False,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings, the agents' own.")] = None,
    metrics: Annotated[
        str, typer.Option("--metrics-bind-address", help="HOST:PORT of /metrics; empty for none.")
    ] = "127.0.0.1:9883",
    healthz: Annotated[
        str, typer.Option("--healthz-bind-address", help="HOST:PORT of /healthz and /readyz; empty for none.")
    ] = "127.0.0.1:9884",
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How log lines look.")] = LogFormat.TEXT,
    cidrs: Annotated[str | None, setting("localRedirectPolicies.addressMatcherCIDRs", "CIDR,...")] = None,
    namespaces: Annotated[
        str | None, setting("localRedirectPolicies.addressMatcherNamespaces", "NAMESPACE,...")
    ] = None,
    max_frontends: Annotated[str | None, setting("localRedirectPolicies.maxFrontendsPerNamespace", "NUMBER")] = None,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Start the controller, unless a command follows."""
    if command.invoked_subcommand:
        return
    flags = {
        "localRedirectPolicies.addressMatcherCIDRs": cidrs,
        "localRedirectPolicies.addressMatcherNamespaces": namespaces,
        "localRedirectPolicies.maxFrontendsPerNamespace": max_frontends,
    }
    from lrp_operator.controller.run import Parts, run  # noqa: PLC0415 - --help needs none of these
    from lrp_operator.resolve.options import ClusterIPs  # noqa: PLC0415
    from lrp_operator.sources.kube.errors import CredentialsError  # noqa: PLC0415

    if lease and (lease.count("/") != 1 or not all(lease.split("/"))):
        _refuse(f"--leader-elect: {lease!r} is not NAMESPACE/NAME")
    try:
        settings, warnings = load_settings(config, os.environ, flags)
        parts = Parts(
            make_credentials=_credentials(kubeconfig, context, api_server),
            options=settings.local_redirect_policies.resolve_options(ClusterIPs.OMIT),
            identity=f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(4)}",
            lease=lease,
            install_crds=install_crds,
            despite_cilium=despite_cilium,
            metrics_address=metrics,
            healthz_address=healthz,
            own_pod=_own_pod(),
        )
        set_up(log_format)
        raise typer.Exit(run(parts, warnings))
    except (ConfigError, CredentialsError, ValueError) as error:
        _refuse(str(error))


@app.command()
def withdraw(
    *,
    order: Annotated[
        str, typer.Option("--order", metavar="NAMESPACE/NAME", help="The ConfigMap that agents follow for the order.")
    ],
    agents: Annotated[
        str, typer.Option("--agents", metavar="SELECTOR", help="Labels of agents' pods, in the ConfigMap's namespace.")
    ],
    agent_image: Annotated[
        str, typer.Option("--agent-image", help="Agents' image: to tell what to do where an agent can't withdraw.")
    ],
    seconds: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=1, help="How long to wait.")] = 240,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
) -> None:
    """Have every agent take off its node what it has put there, and wait for all. `helm uninstall` does this first."""
    from lrp_operator.controller.withdraw import Wanted, run  # noqa: PLC0415
    from lrp_operator.sources.kube.errors import CredentialsError  # noqa: PLC0415

    if order.count("/") != 1 or not all(order.split("/")):
        _refuse(f"--order: {order!r} is not NAMESPACE/NAME")
    try:
        credentials = _credentials(kubeconfig, context, api_server)()
        raise typer.Exit(run(credentials, Wanted(order, agents, agent_image, seconds)))
    except CredentialsError as error:
        _refuse(str(error))


def _own_pod() -> "Regarding | None":
    """Say which pod we are, as the chart tells us."""
    from lrp_operator.controller.herald import Regarding  # noqa: PLC0415

    name, namespace = os.environ.get("POD_NAME", ""), os.environ.get("POD_NAMESPACE", "")
    return Regarding("v1", "Pod", namespace, name, os.environ.get("POD_UID", "")) if name and namespace else None


def _credentials(kubeconfig: Path | None, context: str | None, server: str) -> "Callable[[], Credentials]":
    """Choose where credentials come from: a kubeconfig if one is named or there is no service account."""
    from lrp_operator.sources.kube.credentials import Kubeconfig, ServiceAccount  # noqa: PLC0415

    if kubeconfig is None and context is None and ServiceAccount.is_here():
        return lambda: ServiceAccount(server)
    path = str(kubeconfig or Path("~/.kube/config").expanduser())
    return lambda: Kubeconfig(path, context, server)


def _refuse(sentence: str) -> NoReturn:
    sys.stderr.write(f"lrp-controller: {sentence}\n")
    raise typer.Exit(EXIT_USAGE)


def main() -> None:
    """Entry point."""
    app()
