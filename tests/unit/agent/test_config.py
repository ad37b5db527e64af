"""Settings: where they come from, how they may be spelled, and which of them go together."""

from pathlib import Path

import pytest

from lrp_operator.agent.config import POLICIES_ONLY, SETTINGS, ConfigError, Loaded, Settings, load
from lrp_operator.datapath.model import SocketLevel, TcLevel


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def from_file(config: Path, text: str) -> Loaded:
    config.write_text(text)
    return load(config, {}, {})


SEED_REPLACED = """
kubeProxyReplacement: true
localRedirectPolicy: true
"""
SEED_HOST_ONLY = """
kubeProxyReplacement: true
socketLB:
  hostNamespaceOnly: true
localRedirectPolicy: true
"""
SEED_SOCKETS = """
kubeProxyReplacement: false
socketLB:
  enabled: true
localRedirectPolicy: true
"""
SEED_CLUSTER_IP_ONLY = """
kubeProxyReplacement: false
localRedirectPolicy: true
"""
SEEDS = (SEED_REPLACED, SEED_HOST_ONLY, SEED_SOCKETS, SEED_CLUSTER_IP_ONLY)


@pytest.mark.parametrize(
    ("text", "level", "replaced"),
    [
        ("", SocketLevel.EVERYWHERE, False),
        (SEED_REPLACED, SocketLevel.EVERYWHERE, True),
        (SEED_HOST_ONLY, SocketLevel.HOST_ONLY, True),
        (SEED_SOCKETS, SocketLevel.EVERYWHERE, False),
        (SEED_CLUSTER_IP_ONLY, SocketLevel.OFF, False),
        ("socketLB: {enabled: false}", SocketLevel.OFF, False),
        ("socketLB: {enabled: true, hostNamespaceOnly: true}", SocketLevel.HOST_ONLY, False),
        ("kubeProxyReplacement: 'true'", SocketLevel.EVERYWHERE, True),
        ("kubeProxyReplacement: strict", SocketLevel.EVERYWHERE, True),
        ("kubeProxyReplacement: true\nlocalRedirectPolicies: {enabled: false}", SocketLevel.EVERYWHERE, True),
    ],
)
def test_modes(config: Path, text: str, level: SocketLevel, *, replaced: bool) -> None:
    mode = from_file(config, text).mode
    assert (mode.socket_level, mode.replaces_kube_proxy) == (level, replaced)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kubeProxyReplacement: true\nsocketLB: {enabled: false}", "includes the socket level"),
        ("socketLB: {enabled: false, hostNamespaceOnly: true}", "needs the socket level"),
        ("enableIPv4: false\nenableIPv6: false", "both false"),
        ("localRedirectPolicies: {enabled: false}", "nothing to do"),
        ("localRedirectPolicy: false\nlocalRedirectPolicies: {enabled: true}", "contradict each other"),
        (
            "LocalRedirectPolicy: true",
            "mean localRedirectPolicies.enabled (localRedirectPolicies: {enabled: ...})",
        ),
        ("socketLb: {enabled: true}", "do you mean socketLB.enabled"),
        ("socketLB: {hostNamespaceonly: true}", "do you mean socketLB.hostNamespaceOnly"),
        ("socketLB: true", "socketLB: must be a mapping with enabled, hostNamespaceOnly"),
        ("zebra: 1", "zebra: there is no such setting; there are kubeProxyReplacement, "),
        ("kubeProxyReplacement: 1", "kubeProxyReplacement: must be true or false, not 1"),
        ("kubeProxyReplacement: probe", "write true or false"),
        ("enableIPv4: [true]", "enableIPv4: must be true or false"),
        ("bpf: {lbMapMax: 0}", "bpf.lbMapMax: Input should be greater than or equal to 1"),
        ("bpf: {lbMapMax: many}", "bpf.lbMapMax: must be a number, not 'many'"),
        ("localRedirectPolicies: {addressMatcherCIDRs: [169.254.0.1/16]}", "no network such as"),
        ("localRedirectPolicies: {addressMatcherCIDRs: 3}", "addressMatcherCIDRs: must be a list, not 3"),
        ("[1]", "must be a mapping of settings, not a list"),
        ("a: [", "is no YAML in line"),
        ("a: \x00", "is no YAML"),
        ("socketLB:\n\tenabled: true", "cannot start any token (indent with blanks)"),
    ],
)
def test_what_is_refused_and_how(config: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_file(config, text)
    assert sentence in str(raised.value)


def test_a_contradiction_comes_with_the_table_of_what_goes(config: Path) -> None:
    with pytest.raises(ConfigError, match="every socket, kube-proxy replaced"):
        from_file(config, "kubeProxyReplacement: true\nsocketLB: {enabled: false}")


def test_unreadable(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: can't be read: No such file"):
        load(config, {}, {})
    config.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is no YAML"):
        load(config, {}, {})


def test_later_places_win_and_errors_name_the_place(config: Path) -> None:
    config.write_text("enableIPv6: true\nbpf: {lbMapMax: 1}\nterminateTCP: true")
    env = {"LRP_ENABLE_IPV6": "false", "LRP_BPF_LB_MAP_MAX": "2"}
    settings = load(config, env, {"bpf.lbMapMax": "3", "enableIPv4": None}).settings
    assert (settings.ipv6, settings.bpf.lb_map_max, settings.terminate_tcp, settings.ipv4) == (
        False,
        3,
        True,
        True,
    )
    with pytest.raises(ConfigError, match=r"LRP_ENABLE_IPV6: enableIPv6: must be true or false, not 'maybe'"):
        load(config, {"LRP_ENABLE_IPV6": "maybe"}, {})
    with pytest.raises(ConfigError, match=r"--bpf-lb-map-max: bpf\.lbMapMax: must be a number"):
        load(config, {}, {"bpf.lbMapMax": "x"})


def test_lists_come_from_texts_and_lists(config: Path) -> None:
    config.write_text("localRedirectPolicies: {addressMatcherCIDRs: [169.254.0.0/16, 'fd00::/8']}")
    cidrs = load(config, {}, {}).settings.local_redirect_policies.address_matcher_cidrs
    assert cidrs == ["169.254.0.0/16", "fd00::/8"]
    cidrs = load(None, {"LRP_ADDRESS_MATCHER_CIDRS": "169.254.0.0/16, fd00::/8"}, {}).settings.local_redirect_policies
    assert [str(network) for network in cidrs.networks()] == ["169.254.0.0/16", "fd00::/8"]


def test_deprecated_spellings_are_told(config: Path) -> None:
    loaded = from_file(config, "localRedirectPolicy: true\nkubeProxyReplacement: strict")
    assert any(
        "localRedirectPolicy is deprecated: write localRedirectPolicies: {enabled: ...}" in w for w in loaded.warnings
    )
    assert any("kubeProxyReplacement: strict is deprecated: write true" in w for w in loaded.warnings)


def test_what_does_not_work_yet_is_told(config: Path) -> None:
    assert "NodePort" in from_file(config, SEED_REPLACED).mode.notes[0]
    assert from_file(config, SEED_HOST_ONLY).mode.notes == from_file(config, SEED_REPLACED).mode.notes
    assert from_file(config, SEED_SOCKETS).mode.notes == from_file(config, SEED_CLUSTER_IP_ONLY).mode.notes == ()


def test_the_tc_level_is_for_pods_whose_sockets_are_left_alone(config: Path) -> None:
    tc = {text: from_file(config, text).mode.tc_level for text in SEEDS}
    assert tc == {
        SEED_REPLACED: TcLevel.OFF,
        SEED_HOST_ONLY: TcLevel.PODS,
        SEED_SOCKETS: TcLevel.OFF,
        SEED_CLUSTER_IP_ONLY: TcLevel.PODS,
    }
    datapath = from_file(config, SEED_CLUSTER_IP_ONLY + "bpf: {ctTcpMax: 1000}\n").datapath(Path("/b"), Path("/c"))
    assert (datapath.socket_level, datapath.tc_level, datapath.max_flows) == (SocketLevel.OFF, TcLevel.PODS, 1000)
    assert datapath.max_frontends == 2 * POLICIES_ONLY, "backends' own addresses take room too"


def test_the_datapath_gets_its_part() -> None:
    loaded = load(None, {}, {"bpf.lbMapMax": "10", "terminateTCP": "true", "enableIPv6": "false"})
    datapath = loaded.datapath(Path("/bpf"), Path("/cgroup"))
    assert (datapath.max_frontends, datapath.max_backends, datapath.cluster_ip) == (10, 40, False)
    assert (datapath.terminate_tcp, datapath.ipv6) == (True, False)


def test_there_is_room_for_every_service_where_kube_proxy_is_replaced() -> None:
    datapath = load(None, {}, {"kubeProxyReplacement": "true"}).datapath(Path("/bpf"), Path("/cgroup"))
    assert (datapath.max_frontends, datapath.max_backends, datapath.cluster_ip) == (65536, 4 * 65536, True)


def test_the_table_of_keys_is_the_models() -> None:
    keys = set()
    for field in Settings.model_fields.values():
        inner = getattr(type(field.default), "model_fields", {})
        parts = [part.alias or name for name, part in inner.items()]
        keys |= {f"{field.alias or 'bpf'}.{part}" for part in parts} if parts else {field.alias}
    assert keys == {setting.key for setting in SETTINGS}
