"""Settings: what the agent is told to do, from four places, each overriding the one before it.

    defaults < `--config` file (YAML) < environment (`LRP_*`) < flags

The file is spelled as Cilium's Helm values are, so that a chart can pass its values through unchanged and a value that
people know means here what it means there. One table, SETTINGS, gives each key its flag and variable (named as
Cilium's agent names them). `settings()` merges the places as plain data, mends deprecated spellings with a warning, and
has pydantic check the whole; `mode_of()` then says what such a node does today, or refuses in a sentence.
"""

import difflib
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lrp_operator.datapath.model import DatapathSettings, SocketLevel, TcLevel
from lrp_operator.resolve.options import ClusterIPs, ResolveOptions

EVERY_SERVICE = 65536
POLICIES_ONLY = 4096
"""How many frontends fit where nothing else is said: of all the cluster's Services, or of policies alone."""

_TYPES = {"bool": "true or false", "int": "a number", "list": "a list", "dict": "a mapping"}


class ConfigError(Exception):
    """The settings can't be used; the text says which, where it came from, and what to write instead."""


class Written(NamedTuple):
    """A file of settings that is none on this machine, such as a ConfigMap's. origin: what people know it by."""

    origin: str
    text: str


class Setting(NamedTuple):
    """One key of the settings, as the file, a flag and a variable spell it."""

    key: str
    flag: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning."""
        return "LRP_" + self.flag.removeprefix("lrp-").upper().replace("-", "_")


SETTINGS = (
    Setting("kubeProxyReplacement", "kube-proxy-replacement", "Balance every ClusterIP Service too."),
    Setting("socketLB.enabled", "bpf-lb-sock", "Redirect where sockets connect and send."),
    Setting("socketLB.hostNamespaceOnly", "bpf-lb-sock-hostns-only", "Only sockets of the node's own namespace."),
    Setting("localRedirectPolicies.enabled", "enable-local-redirect-policy", "Put policies into effect."),
    Setting(
        "localRedirectPolicies.addressMatcherCIDRs",
        "lrp-address-matcher-cidrs",
        "Addresses that policies may take, comma-separated (none: any).",
    ),
    Setting(
        "localRedirectPolicies.addressMatcherNamespaces",
        "lrp-address-matcher-namespaces",
        "Namespaces whose policies may name addresses, comma-separated (none: every one).",
    ),
    Setting(
        "localRedirectPolicies.maxFrontendsPerNamespace",
        "lrp-max-frontends-per-namespace",
        "Frontends that the policies of one namespace may have together (0: any number).",
    ),
    Setting("enableIPv4", "enable-ipv4", "Redirect IPv4."),
    Setting("enableIPv6", "enable-ipv6", "Redirect IPv6."),
    Setting(
        "bpf.lbMapMax",
        "bpf-lb-map-max",
        "Frontends that fit, by family (default: 4096, or 65536 without kube-proxy; twice that at the TC level).",
    ),
    Setting("bpf.lbBackendMapMax", "bpf-lb-backend-map-max", "Backends that fit (default: four times the frontends)."),
    Setting("bpf.ctTcpMax", "bpf-ct-global-tcp-max", "TCP connections that fit at the TC level, by family."),
    Setting("terminateTCP", "terminate-tcp", "End TCP connections when their backend goes (UDP always)."),
)
BY_KEY = {setting.key: setting for setting in SETTINGS}
DEPRECATED = {"localRedirectPolicy": "localRedirectPolicies.enabled"}


def _read_bool(value: object) -> object:
    """Take the strings that Helm and the environment write for a bool; leave the rest to pydantic."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    return value


def _read_size(value: object) -> object:
    """Take digits as the number they are: the environment has only texts."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def _read_list(value: object) -> object:
    """Take a comma-separated text as a list."""
    return [item for item in (part.strip() for part in value.split(",")) if item] if isinstance(value, str) else value


def _check_cidr(value: object) -> object:
    """Refuse what is no network, saying what one looks like; a mapped IPv4 network stays as written."""
    try:
        return str(ipaddress.ip_network(str(value)))
    except ValueError as error:
        raise ValueError(f"{value!r} is no network such as 169.254.0.0/16 ({error})") from error


Bool = Annotated[bool, BeforeValidator(_read_bool)]
Size = Annotated[int, BeforeValidator(_read_size), Field(ge=1, le=1 << 24)]
Cidr = Annotated[str, BeforeValidator(_check_cidr)]


class _Part(BaseModel):
    """A part of the settings: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SocketLB(_Part):
    """The socket level. enabled: None means as the mode wants it."""

    enabled: Bool | None = None
    host_namespace_only: Bool = Field(default=False, alias="hostNamespaceOnly")


class LocalRedirectPolicies(_Part):
    """Policies, which addresses and namespaces may be theirs (empty: any), and how many frontends (0: any number)."""

    enabled: Bool = True
    address_matcher_cidrs: Annotated[list[Cidr], BeforeValidator(_read_list)] = Field(
        default=[], alias="addressMatcherCIDRs"
    )
    address_matcher_namespaces: Annotated[list[str], BeforeValidator(_read_list)] = Field(
        default=[], alias="addressMatcherNamespaces"
    )
    max_frontends_per_namespace: Annotated[int, BeforeValidator(_read_size), Field(ge=0)] = Field(
        default=0, alias="maxFrontendsPerNamespace"
    )

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The addresses that policies may take."""
        return tuple(ipaddress.ip_network(cidr) for cidr in self.address_matcher_cidrs)

    def resolve_options(self, cluster_ips: ClusterIPs) -> ResolveOptions:
        """What resolution is asked for; the same for every node and for the controller, so that all decide alike."""
        return ResolveOptions(
            address_matcher_cidrs=self.networks(),
            cluster_ips=cluster_ips,
            address_matcher_namespaces=tuple(self.address_matcher_namespaces),
            max_frontends_per_namespace=self.max_frontends_per_namespace,
        )


class Bpf(_Part):
    """Sizes of the kernel's maps, for each address family; None: as the mode needs them."""

    lb_map_max: Size | None = Field(default=None, alias="lbMapMax")
    lb_backend_map_max: Size | None = Field(default=None, alias="lbBackendMapMax")
    ct_tcp_max: Size = Field(default=65536, alias="ctTcpMax")


class Settings(_Part):
    """All settings; the aliases are how the file spells them, which is Cilium's way."""

    kube_proxy_replacement: Bool = Field(default=False, alias="kubeProxyReplacement")
    socket_lb: SocketLB = Field(default=SocketLB(), alias="socketLB")
    local_redirect_policies: LocalRedirectPolicies = Field(
        default=LocalRedirectPolicies(), alias="localRedirectPolicies"
    )
    ipv4: Bool = Field(default=True, alias="enableIPv4")
    ipv6: Bool = Field(default=True, alias="enableIPv6")
    bpf: Bpf = Bpf()
    terminate_tcp: Bool = Field(default=False, alias="terminateTCP")


EVERYWHERE = "socket level for every pod and the node"
HOST_ONLY = "socket level for the node, TC level for pods"
TC_ONLY = "TC level for pods"
"""What names of modes begin with; nodes report them, and `lrpctl why` tells whom they concern."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What the settings amount to. notes: what does not work (yet) in this mode, a sentence each, said at start."""

    name: str
    socket_level: SocketLevel
    tc_level: TcLevel
    replaces_kube_proxy: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Checked settings, the mode they make, and what is to be told about how they were written."""

    settings: Settings
    mode: Mode
    warnings: tuple[str, ...]

    def datapath(self, bpf_root: Path, cgroup_root: Path) -> DatapathSettings:
        """The part that the datapath is built from."""
        sizes = self.settings.bpf
        usual = EVERY_SERVICE if self.mode.replaces_kube_proxy else POLICIES_ONLY
        at_links = self.mode.tc_level is TcLevel.PODS
        max_frontends = sizes.lb_map_max or (2 * usual if at_links else usual)  # backends' own addresses, too
        return DatapathSettings(
            bpf_root=bpf_root,
            cgroup_root=cgroup_root,
            socket_level=self.mode.socket_level,
            tc_level=self.mode.tc_level,
            ipv4=self.settings.ipv4,
            ipv6=self.settings.ipv6,
            cluster_ip=self.mode.replaces_kube_proxy,
            terminate_tcp=self.settings.terminate_tcp,
            max_frontends=max_frontends,
            max_backends=sizes.lb_backend_map_max or 4 * max_frontends,
            max_flows=sizes.ct_tcp_max,
        )


def load(config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Loaded:
    """Read all places, check what they say together, and say what a node does with that. Raises ConfigError.

    flags: by key of SETTINGS; None is a flag that was not given.
    """
    settings, warnings = load_settings(config, environ, flags)
    return Loaded(settings, mode_of(settings), warnings)


def load_settings(
    config: Path | Written | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> tuple[Settings, tuple[str, ...]]:
    """Read all places and check them; the settings, and what is to be told about them. Raises ConfigError."""
    merged = _Merged()
    if config is not None:
        tree = _parsed(config.text, config.origin) if isinstance(config, Written) else _read_file(config)
        merged.add_tree(tree, origin=config.origin if isinstance(config, Written) else str(config))
    for setting in SETTINGS:
        if environ.get(setting.variable, "") != "":
            merged.add(setting.key, environ[setting.variable], origin=setting.variable)
    for key, value in flags.items():
        if value is not None:
            merged.add(key, value, origin=f"--{BY_KEY[key].flag}")
    return merged.checked(), tuple(merged.warnings)


class _Merged:
    """Settings by dotted key, the last place winning, each with the place it came from."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.origins: dict[str, str] = {}
        self.warnings: list[str] = []

    def add_tree(self, tree: Mapping[str, object], origin: str) -> None:
        """Take a file's mapping; unknown keys are refused with the nearest known one."""
        flat = dict(_flatten(tree))
        for key, value in flat.items():
            if new := DEPRECATED.get(key):
                self._add_deprecated(key, new, value, flat.get(new), origin)
            elif key in BY_KEY:
                self.add(key, value, origin)
            else:
                raise ConfigError(f"{origin}: {_unknown(key, value)}")

    def _add_deprecated(self, old: str, new: str, value: object, beside: object, origin: str) -> None:
        self.warnings.append(f"{origin}: {old} is deprecated: write {_spelled(new)}")
        if beside is not None and _read_bool(beside) != _read_bool(value):
            raise ConfigError(f"{origin}: {old} and {new} contradict each other: remove {old}")
        self.add(new, value, origin)

    def add(self, key: str, value: object, origin: str) -> None:
        """Set one key."""
        if key == "kubeProxyReplacement":
            value = self._modern_replacement(value, origin)
        self.values[key] = value
        self.origins[key] = origin

    def _modern_replacement(self, value: object, origin: str) -> object:
        """Read what kubeProxyReplacement could be before it was a bool."""
        if value in ("strict", "disabled"):
            modern = value == "strict"
            self.warnings.append(f"{origin}: kubeProxyReplacement: {value} is deprecated: write {str(modern).lower()}")
            return modern
        if value in ("partial", "probe"):
            raise ConfigError(f"{origin}: kubeProxyReplacement: {value} is no more: write true or false")
        return value

    def checked(self) -> Settings:
        """Have pydantic check the whole. Raises ConfigError naming every wrong value and where it was written."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *parents, last = key.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = value
        try:
            return Settings.model_validate(tree)
        except ValidationError as error:
            raise ConfigError("; ".join(self._sentence(problem) for problem in error.errors())) from error

    def _sentence(self, problem: Any) -> str:
        names = [str(part) for part in problem["loc"]]
        key = next((".".join(names[:n]) for n in (2, 1) if ".".join(names[:n]) in BY_KEY), ".".join(names))
        wanted = _TYPES.get(str(problem["type"]).removesuffix("_type").removesuffix("_parsing"))
        said = str(problem["msg"]).removeprefix("Value error, ")
        text = f"must be {wanted}, not {problem['input']!r}" if wanted else said
        return f"{self.origins.get(key, 'settings')}: {key}: {text}"


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value); a null is a value that was not given, as in Helm."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{key}.")
        elif value is not None:
            yield key, value


def _spelled(key: str) -> str:
    """Write a dotted key as nested YAML on one line."""
    *parents, last = key.split(".")
    return "".join(f"{parent}: {{" for parent in parents) + f"{last}: ..." + "}" * len(parents)


def _unknown(key: str, value: object) -> str:
    """Say that a key is not known, and which one was probably meant."""
    parents = {known.split(".")[0] for known in BY_KEY if "." in known}
    if key in parents:
        inner = ", ".join(known.removeprefix(f"{key}.") for known in BY_KEY if known.startswith(f"{key}."))
        return f"{key}: must be a mapping with {inner}, not {value!r}"
    known_keys = {known.lower(): known for known in [*BY_KEY, *DEPRECATED]}
    near = difflib.get_close_matches(key.lower(), known_keys, n=1, cutoff=0.6)
    if not near:
        return f"{key}: there is no such setting; there are {', '.join(BY_KEY)}"
    meant = known_keys[near[0]]
    meant = DEPRECATED.get(meant, meant)
    return f"{key}: there is no such setting; do you mean {meant} ({_spelled(meant)})?"


def _read_file(path: Path) -> Mapping[str, object]:
    """Read a YAML mapping. Raises ConfigError with the place."""
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def _parsed(text: bytes | str, path: str) -> Mapping[str, object]:
    try:
        tree = yaml.safe_load(text if isinstance(text, str) else text.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        why = str(getattr(error, "problem", None) or error)
        hint = " (indent with blanks)" if "'\\t'" in why else ""
        raise ConfigError(f"{path}: is no YAML{place}: {why}{hint}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, not a {type(tree).__name__}")
    return tree


TABLE = """What goes:
  kubeProxyReplacement  socketLB.enabled  socketLB.hostNamespaceOnly
  true                  (true)            false                       every socket, kube-proxy replaced
  true                  (true)            true                        the node's sockets, pods at TC level
  false                 true              false                       every socket, kube-proxy stays
  false                 false             false                       pods at TC level, kube-proxy stays"""

_NOT_REPLACED = (
    "kubeProxyReplacement: only ClusterIP addresses are balanced so far; NodePort, externalIPs, load-balancer "
    "addresses and traffic distribution still need kube-proxy"
)


def mode_of(settings: Settings) -> Mode:
    """Say what the settings amount to on a node. Raises ConfigError for contradictions."""
    for wrong, sentence in _CONTRADICTIONS:
        if wrong(settings):
            raise ConfigError(sentence)
    notes = (_NOT_REPLACED,) if settings.kube_proxy_replacement else ()
    if not _socket_level(settings):
        name, socket_level, tc_level = TC_ONLY, SocketLevel.OFF, TcLevel.PODS
    elif settings.socket_lb.host_namespace_only:
        name, socket_level, tc_level = HOST_ONLY, SocketLevel.HOST_ONLY, TcLevel.PODS
    else:
        name, socket_level, tc_level = EVERYWHERE, SocketLevel.EVERYWHERE, TcLevel.OFF
    proxy = "kube-proxy replaced" if settings.kube_proxy_replacement else "kube-proxy stays"
    return Mode(f"{name}, {proxy}", socket_level, tc_level, settings.kube_proxy_replacement, notes)


def _socket_level(settings: Settings) -> bool:
    """Whether the socket level is on. Not said, it is, but for who says kubeProxyReplacement: false as in Cilium."""
    if settings.socket_lb.enabled is not None:
        return settings.socket_lb.enabled
    return settings.kube_proxy_replacement or "kube_proxy_replacement" not in settings.model_fields_set


_CONTRADICTIONS: tuple[tuple[Callable[[Settings], bool], str], ...] = (
    (
        lambda s: s.kube_proxy_replacement and s.socket_lb.enabled is False,
        f"kubeProxyReplacement: true includes the socket level: remove socketLB.enabled: false\n{TABLE}",
    ),
    (
        lambda s: s.socket_lb.host_namespace_only and not _socket_level(s),
        f"socketLB.hostNamespaceOnly: true needs the socket level: add socketLB.enabled: true\n{TABLE}",
    ),
    (
        lambda s: not s.ipv4 and not s.ipv6,
        "enableIPv4 and enableIPv6 are both false: nothing could be redirected",
    ),
    (
        lambda s: not s.local_redirect_policies.enabled and not s.kube_proxy_replacement,
        "localRedirectPolicies.enabled and kubeProxyReplacement are both false: there is nothing to do",
    ),
)


def node_name(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The node to resolve for: the flag, or K8S_NODE_NAME. Raises ConfigError if there is neither."""
    if name := given or environ.get("K8S_NODE_NAME", ""):
        return name
    raise ConfigError("which node is this? Give --node-name, or set K8S_NODE_NAME (fieldRef: spec.nodeName)")
