"""What runs on the node, and its settings: Kubernetes, containerd, CNI.

`write(state, cni)` writes settings and keys into a node's directory and returns the units, by name, in the order of
their start. Nothing waits for anything: what comes too early ends, and is started again, or tries again by itself.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.cluster import binaries
from tests.e2e import keys
from tests.e2e.init import kept_at

Cni = Literal["bridge", "ptp"]
ProxyMode = Literal["iptables", "nftables"]

NODE = "e2e-node"
# The link between the world and the node. Everything has addresses of both kinds, IPv4 first.
WORLD_IP, NODE_IP = "172.30.0.1", "172.30.0.2"
WORLD_IP6, NODE_IP6 = "fd00:30::1", "fd00:30::2"
URL = f"https://{NODE_IP}:6443"
SERVICE_CIDRS, POD_CIDRS = ["10.96.0.0/16", "fd00:96::/108"], ["10.244.0.0/23", "fd00:244::/64"]
KUBERNETES_IP, DNS_IP = "10.96.0.1", "10.96.0.10"
SOCKET = "/run/containerd/containerd.sock"
# Both who use it make it, and by default it would be outside of what the node keeps.
VOLUME_PLUGINS = "/var/lib/kubelet/volume-plugins"
CNI_PLUGINS = Path("/usr/lib/cni")
PAUSE_IMAGE = "localhost/lrp-e2e-pause:e2e"

# Who asks the API server: the file's name, the user, the groups.
USERS = [
    ("admin", "admin", ["system:masters"]),
    ("node", f"system:node:{NODE}", ["system:nodes"]),
    ("kube-controller-manager", "system:kube-controller-manager", []),
    ("kube-scheduler", "system:kube-scheduler", []),
    ("kube-proxy", "system:kube-proxy", []),
]


def write(state: Path, cni: Cni, proxy: ProxyMode) -> dict[str, list[str]]:
    """Write settings and keys; return each unit's command."""
    room = state / "keys"
    keys.write_authority(room)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    at = ",".join([*(f"DNS:{name}" for name in names), f"IP:{NODE_IP}", f"IP:{KUBERNETES_IP}", "IP:127.0.0.1"])
    keys.write_certificate(room, "apiserver", "kube-apiserver", "system:masters", at=at)
    for name, user, groups in USERS:
        keys.write_certificate(room, name, user, *groups)
        keys.write_kubeconfig(room, name, URL)
    (state / "resolv.conf").write_text(f"nameserver {WORLD_IP}\n")
    _write_cni(state, cni)
    settings = state / "settings"
    settings.mkdir()
    (settings / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(room)))
    (settings / "kube-proxy.yaml").write_text(yaml.safe_dump(_kube_proxy(room, proxy)))
    (settings / "containerd.toml").write_text(_containerd(_runtime(state)))
    return {
        "containerd": ["/usr/bin/containerd", f"--config={settings}/containerd.toml"],
        "etcd": _etcd(),
        "kube-apiserver": _apiserver(room),
        "kube-controller-manager": _controller_manager(room),
        "kube-scheduler": [
            _built("kube-scheduler"), f"--kubeconfig={room}/kube-scheduler.kubeconfig", "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
        "kubelet": [
            _built("kubelet"), f"--config={settings}/kubelet.yaml", f"--kubeconfig={room}/node.kubeconfig",
            f"--node-ip={NODE_IP},{NODE_IP6}", f"--hostname-override={NODE}",
        ],
        "kube-proxy": [_built("kube-proxy"), f"--config={settings}/kube-proxy.yaml"],
    }  # fmt: skip


def _built(name: binaries.Program) -> str:
    return str(binaries.program(name))


def _etcd() -> list[str]:
    peer, client = "http://127.0.0.1:2380", "http://127.0.0.1:2379"
    return [
        _built("etcd"), "--name=etcd", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=etcd={peer}",
    ]  # fmt: skip


def _apiserver(room: Path) -> list[str]:
    flags = {
        "etcd-servers": "http://127.0.0.1:2379",
        "advertise-address": NODE_IP,
        "secure-port": 6443,
        "tls-cert-file": room / "apiserver.crt",
        "tls-private-key-file": room / "apiserver.key",
        "client-ca-file": room / "ca.crt",
        "kubelet-client-certificate": room / "apiserver.crt",
        "kubelet-client-key": room / "apiserver.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": room / "accounts.key",
        "service-account-signing-key-file": room / "accounts.key",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-cluster-ip-range": ",".join(SERVICE_CIDRS),
    }
    return [_built("kube-apiserver"), *(f"--{flag}={value}" for flag, value in flags.items())]


def _controller_manager(room: Path) -> list[str]:
    return [
        _built("kube-controller-manager"), f"--kubeconfig={room}/kube-controller-manager.kubeconfig",
        f"--service-account-private-key-file={room}/accounts.key", f"--root-ca-file={room}/ca.crt",
        "--use-service-account-credentials=true", "--leader-elect=false", "--bind-address=127.0.0.1",
        f"--flex-volume-plugin-dir={VOLUME_PLUGINS}",
    ]  # fmt: skip


def _kubelet(room: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "authentication": {
            "x509": {"clientCAFile": str(room / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "maxPods": 260,
        "volumePluginDir": VOLUME_PLUGINS,
        # What is full on the machine is none of the node's business.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "1s",
        "registryPullQPS": 50,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    }


def _kube_proxy(room: Path, mode: ProxyMode) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": NODE,
        "clusterCIDR": ",".join(POD_CIDRS),
        "clientConnection": {"kubeconfig": str(room / "kube-proxy.kubeconfig")},
        # Connection tracking's sizes are the machine's: leave them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


RUNC = "/usr/sbin/runc"
SYS_RESOURCE = 24
# Nobody can give what the machine's own root lacks, and runc refuses to try. What is asked for beside it is given.
WITHOUT_SYS_RESOURCE = f"""\
#!/bin/sh
before=
for arg do
  case $before in
    --bundle) file=$arg/config.json ;;
    --process) file=$arg ;;
  esac
  before=$arg
done
[ -z "$file" ] || sed -i 's/,"CAP_SYS_RESOURCE"//g; s/"CAP_SYS_RESOURCE",//g' "$file"
exec {RUNC} "$@"
"""


def _runtime(state: Path) -> str:
    """The program that makes containers: runc, or what leaves the capability out that this machine has not."""
    bounding = re.search(r"^CapBnd:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert bounding
    if int(bounding[1], 16) >> SYS_RESOURCE & 1:
        return RUNC
    wrapper = state / "settings" / "runc"
    wrapper.write_text(WITHOUT_SYS_RESOURCE)
    wrapper.chmod(0o755)
    return str(wrapper)


def _containerd(runtime: str) -> str:
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # The node may be on a machine whose root lacks CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runtime}"
"""


def cni_config(cni: Cni) -> dict[str, Any]:
    """A network list: pods on a bridge, or each on a routed link of its own."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in POD_CIDRS],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    links: dict[Cni, dict[str, Any]] = {
        "bridge": {"bridge": "cni0", "isGateway": True, "hairpinMode": True},
        "ptp": {},
    }
    return {
        "cniVersion": "1.0.0",
        "name": "e2e",
        "plugins": [
            {"type": cni, "ipMasq": True, "ipam": ipam, **links[cni]},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _write_cni(state: Path, cni: Cni) -> None:
    """Write the network's settings, and put the plugins where an installer puts them."""
    programs, settings = kept_at(state, "/opt/cni") / "bin", kept_at(state, "/etc/cni") / "net.d"
    programs.mkdir(parents=True)
    settings.mkdir(parents=True)
    for name in (cni, "host-local", "portmap", "loopback"):
        (programs / name).write_bytes((CNI_PLUGINS / name).read_bytes())
        (programs / name).chmod(0o755)
    (settings / "10-e2e.conflist").write_text(json.dumps(cni_config(cni)))
