"""`lrpctl status`: is this node's redirecting as it should be, and if not, why not?"""

import sys
from collections import Counter

import typer

from lrp_operator.agent.apimodel import PodLink, Status
from lrp_operator.cli.asking import SOCKET, ApiSocket, age, ask, show
from lrp_operator.cli.client import EXIT_NOT_WELL
from lrp_operator.cli.output import Output, OutputOption, printable

MOST = 10
"""So many lines of one kind are shown."""


def status(api_socket: ApiSocket = SOCKET, output: OutputOption = Output.TABLE) -> None:
    """Tell how the agent and this node stand. Exits 0 if all is well, 1 if not, 3 if no agent answers."""
    answer = ask(api_socket, "status", Status)
    show(answer, output, print_status)
    if not answer.healthy:
        raise typer.Exit(EXIT_NOT_WELL)


def print_status(answer: Status) -> None:
    """Print the overview: a verdict first, then what it rests on."""
    lines = [
        ("Redirects", _verdict(answer)),
        ("Agent", f"{answer.agent_version}, pid {answer.pid}, started {age(answer.started)} ago"),
        ("Node", answer.node),
        ("Mode", answer.mode),
        *_counts(answer),
        *_sources(answer),
        *_kernel(answer),
        *_listed("Missing", [f"{f.name}: {f.consequence}" for f in answer.features if not f.available]),
        *_listed("Note", answer.notes),
        *_listed("Problem", answer.problems),
    ]
    sys.stdout.writelines(f"{name + ':' if name else '':<12}{printable(text)}\n" for name, text in lines)


def _verdict(answer: Status) -> str:
    if answer.ready:
        return "in force" if answer.healthy else "in force, with problems (below)"
    if answer.in_force:
        return f"in force as they were left, not up to date: {answer.message}"
    return f"NOT in force: {answer.message}"


def _counts(answer: Status) -> list[tuple[str, str]]:
    policies, frontends = answer.policies, answer.frontends
    rejected = f", {policies.rejected} rejected (see lrpctl lrp list)" if policies.rejected else ""
    kinds = [
        f"{frontends.local_redirect} to pods of this node",
        f"{frontends.refused} refused" if frontends.refused else "",
        f"{frontends.cluster_ip} of Services without a policy" if frontends.cluster_ip else "",
        f"{frontends.not_redirected} not redirected here" if frontends.not_redirected else "",
    ]
    return [
        ("Policies", f"{policies.accepted} accepted, {policies.redirecting} of them redirecting here{rejected}"),
        ("Frontends", ", ".join(filter(None, kinds))),
    ]


def _sources(answer: Status) -> list[tuple[str, str]]:
    lines = []
    for source in answer.sources:
        state = f"{source.objects} objects" if source.complete else "not read yet"
        lines.append(("Source", f"{source.name}: {state}"))
        lines += _listed("Unreadable", source.problems)
    return lines


def _kernel(answer: Status) -> list[tuple[str, str]]:
    synced = f"last as wanted {age(answer.last_sync)} ago" if answer.last_sync else "never as wanted so far"
    programs = ", ".join(f"{name} ({number})" for name, number in sorted(answer.programs.items()))
    slots = ", ".join(
        f"{family} {used} of {answer.slots_max.get(family, 0)}" for family, used in sorted(answer.slots_used.items())
    )
    flows = ", ".join(f"{family} {count} of {answer.flows_max}" for family, count in sorted(answer.flows.items()))
    lines = [
        ("Kernel", f"{synced}; pins in {answer.pins.bpf_root}, cgroups below {answer.pins.cgroup_root}"),
        ("Programs", programs),
        ("Slots", slots),
        ("Pod links", _links(answer.links)),
        ("Flows", flows),
        ("Events lost", str(answer.events_dropped or "")),
    ]
    return [line for line in lines if line[1]]


def _links(links: list[PodLink]) -> str:
    """Count pods' links by how they stand; what is wrong with one is among the problems."""
    counts = Counter(link.state for link in links)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _listed(name: str, sentences: list[str]) -> list[tuple[str, str]]:
    lines = [(name, sentence) for sentence in sentences[:MOST]]
    return lines if len(sentences) <= MOST else [*lines, ("", f"and {len(sentences) - MOST} more (see -o json)")]
