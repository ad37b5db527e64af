"""A real Kubernetes API for tests: etcd and kube-apiserver on loopback, and what a test does to them.

A Cluster has its own directory, ports, authority and keys, so several live side by side. There are no nodes, and no
controllers unless asked for (`controllers`): what a kubelet or a controller would write, a test writes itself.
Authorization is RBAC, as in a real cluster; `admin` may do everything, and any other user or service account what
roles say. The ServiceAccount admission plugin is off, because without controllers no namespace has a service account.

Its processes die with the process that started them, however that ends. Not real: etcd does not wait for its disk.
"""

import base64
import fcntl
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import yaml

from tests.cluster import binaries

Manifest = dict[str, Any]

LOCALHOST = "127.0.0.1"
ISSUER = "https://kubernetes.default.svc"
# Below the ephemeral ports: while the API server is stopped, no outgoing connection takes its port.
PORTS = range(20000, 30000)
READY_WITHIN = 120.0
PREFIX = "lrp-cluster-"
# A key of etcd that the API server does not know, in the base64 of etcd's gateway.
COMPACTED = base64.b64encode(b"lrp-operator/compacted").decode()

# The kernel kills the programs when the thread that started them ends (PR_SET_PDEATHSIG goes by thread), so they are
# started from one that lives as long as the process.
_starter = ThreadPoolExecutor(1, "cluster-starter")


class ClusterError(Exception):
    """A program of the cluster ended, or does not answer; or a command of kubectl failed. The text has its words."""


@dataclass(frozen=True)
class Answer:
    """What the API server answered."""

    status: int
    body: Any

    def __bool__(self) -> bool:
        """Whether it was a success."""
        return self.status < 300


@dataclass(frozen=True)
class Request:
    """A request, as the API server's audit log has it.

    user: empty where the credentials were refused. path: with its query. code: 0 where the client left before.
    """

    user: str
    verb: str
    path: str
    resource: str
    code: int


class Cluster:
    """An etcd and a kube-apiserver, running between `with` and its end.

    url, ca: where the API is, and the file with its authority. token: the administrator's.
    """

    def __init__(self, *, audit: bool = False) -> None:
        """audit: whether requests are logged, for `requests()`."""
        _sweep()
        self._room = tempfile.TemporaryDirectory(prefix=PREFIX)
        self.dir = Path(self._room.name)
        self._lease = _lease(self.dir)
        self.token = secrets.token_hex(16)
        self.ca = self.dir / "ca.crt"
        self.port, self._etcd_port, self._peer_port = free_ports(3)
        self.url = f"https://{LOCALHOST}:{self.port}"
        self._etcd = _Process("etcd", self.dir)
        self._apiserver = _Process("kube-apiserver", self.dir)
        self._controllers = _Process("kube-controller-manager", self.dir)
        self._audit = audit
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}
        self._requests: dict[str, Request] = {}
        self._audited = 0  # so many bytes of the log are in them
        self._kubeconfigs = 0

    def __enter__(self) -> Self:
        """Start it; returns when the API server is ready."""
        try:
            _write_keys(self.dir)
            (self.dir / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
            (self.dir / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
            self.start_etcd()
            self.start_apiserver()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything and remove what it wrote."""
        for process in (self._controllers, self._apiserver, self._etcd):
            process.kill()
        self._lease.close()
        self._room.cleanup()

    # ------------------------------------------------------------------------------------------------ life and death

    def start_etcd(self) -> None:
        """Start etcd with what it had."""
        peer, client = f"http://{LOCALHOST}:{self._peer_port}", f"http://{LOCALHOST}:{self._etcd_port}"
        self._etcd.start(
            "--name=etcd", f"--data-dir={self.dir}/etcd", "--unsafe-no-fsync", "--log-level=warn",
            "--heartbeat-interval=10", "--election-timeout=100",  # it has nobody to wait for
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=etcd={peer}",
        )  # fmt: skip
        self._etcd.wait(lambda: self._etcd_call("maintenance/status"))

    def start_apiserver(self) -> None:
        """Start the API server; returns when it is ready. It listens where it did before."""
        flags = {
            "etcd-servers": f"http://{LOCALHOST}:{self._etcd_port}",
            "etcd-compaction-interval": "0",  # a test compacts when it wants to
            "bind-address": LOCALHOST,
            "advertise-address": LOCALHOST,
            "endpoint-reconciler-type": "none",  # loopback can't be the address of the Service `kubernetes`
            "secure-port": self.port,
            "tls-cert-file": self.dir / "server.crt",
            "tls-private-key-file": self.dir / "server.key",
            "client-ca-file": self.ca,
            "token-auth-file": self.dir / "tokens.csv",
            "service-account-issuer": ISSUER,
            "service-account-key-file": self.dir / "accounts.key",
            "service-account-signing-key-file": self.dir / "accounts.key",
            "authorization-mode": "RBAC",
            "disable-admission-plugins": "ServiceAccount",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.96.0.0/16,fd00:96::/108",
        }
        if self._audit:
            flags |= {"audit-policy-file": self.dir / "audit.yaml", "audit-log-path": self.dir / "audit.log"}
        self._apiserver.start(*(f"--{flag}={value}" for flag, value in flags.items()))
        self._apiserver.wait(lambda: bool(self.request("GET", "/readyz")))

    def stop_apiserver(self) -> None:
        """Kill the API server: its connections break, and new ones are refused."""
        self._apiserver.kill()

    def restart(self) -> None:
        """Kill the API server and start it again."""
        self.stop_apiserver()
        self.start_apiserver()

    def compact(self) -> None:
        """Make etcd forget all history: lists go on no more, and with `forget`, neither do watches."""
        revision = self._etcd_call("kv/put", key=COMPACTED)["header"]["revision"]  # a new one: none is compacted twice
        self._etcd_call("kv/compaction", revision=revision, physical=True)

    def forget(self) -> None:
        """Compact, and restart the API server, whose cache else still has the history: old watches get a 410."""
        self.compact()
        self.restart()

    def save(self) -> Path:
        """A copy of what etcd has now, for `restore`. The API server is restarted meanwhile."""
        copy = Path(tempfile.mkdtemp(prefix="etcd-", dir=self.dir))
        with self._etcd_away():
            shutil.copytree(self.dir / "etcd", copy, dirs_exist_ok=True)
        return copy

    def restore(self, copy: Path) -> None:
        """Go back to a copy, as from a backup: resource versions run back too."""
        with self._etcd_away():
            shutil.rmtree(self.dir / "etcd")
            shutil.copytree(copy, self.dir / "etcd")

    @contextmanager
    def _etcd_away(self) -> Iterator[None]:
        self.stop_apiserver()
        self._etcd.kill()
        yield
        self.start_etcd()
        self.start_apiserver()

    @contextmanager
    def controllers(self, *names: str) -> Iterator[None]:
        """Run controllers of kube-controller-manager, such as "namespace-controller" or "endpointslice-controller"."""
        self._controllers.start(
            f"--kubeconfig={self.kubeconfig()}", f"--controllers={','.join(names)}", "--leader-elect=false",
            "--secure-port=0", "--use-service-account-credentials=false", "--node-monitor-period=1s",
            f"--authentication-kubeconfig={self.kubeconfig()}", f"--authorization-kubeconfig={self.kubeconfig()}",
        )  # fmt: skip
        try:
            yield
        finally:
            self._controllers.kill()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the API server be stopped in its tracks meanwhile: connections are taken, and nothing is answered."""
        os.kill(self._apiserver.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._apiserver.pid, signal.SIGCONT)

    def store(self, objects: Mapping[str, Manifest], *, at_once: int = 1) -> None:
        """Put objects into etcd past the API server, thousands in a second; by their keys ("pods/default/a").

        Nothing checks or completes them: they need all that the API server would set, such as uid. It reads them
        because what it stores may be JSON, too.

        at_once: so many in one transaction (128 at most), which is much quicker. They share a resourceVersion, which
        the API server's own writes never do: who watches them, and is cut off among them, misses the others.
        """
        puts = [
            {"requestPut": {"key": _encoded(f"/registry/{key}"), "value": _encoded(json.dumps(manifest))}}
            for key, manifest in objects.items()
        ]
        for start in range(0, len(puts), at_once):
            self._etcd_call("kv/txn", success=puts[start : start + at_once])

    def _etcd_call(self, method: str, **arguments: Any) -> Any:
        """Call etcd through its JSON gateway."""
        connection = http.client.HTTPConnection(LOCALHOST, self._etcd_port, timeout=30)
        try:
            connection.request("POST", f"/v3/{method}", json.dumps(arguments))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ClusterError(f"etcd answered {method} with {answer.status}: {body.decode(errors='replace')}")
        return json.loads(body)

    # ----------------------------------------------------------------------------------------------------- requests

    def request(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Ask the API server, as the administrator or whose token it is. Raises OSError while it is away."""
        connection = http.client.HTTPSConnection(LOCALHOST, self.port, timeout=60, context=self.tls())
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": content_type}
        try:
            connection.request(verb, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return Answer(answer.status, json.loads(text) if is_json else text)

    def tls(self) -> ssl.SSLContext:
        """What a client trusts this API server by."""
        return ssl.create_default_context(cafile=str(self.ca))

    def path(self, manifest: Mapping[str, Any]) -> str:
        """Where the API has the object that a manifest describes; its kind must be known."""
        api, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
        group = f"/api/{api}" if api == "v1" else f"/apis/{api}"
        if (api, kind) not in self._resources:
            found = _succeeded(self.request("GET", group), f"the kinds of {api}")["resources"]
            self._resources |= {
                (api, item["kind"]): (item["name"], item["namespaced"]) for item in found if "/" not in item["name"]
            }
        if (api, kind) not in self._resources:
            raise ClusterError(f"{api} has no {kind}")
        resource, namespaced = self._resources[api, kind]
        where = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{group}{where}/{resource}/{metadata['name']}"

    def apply(self, manifest: Manifest, *, subresource: str = "", manager: str = "test") -> Manifest:
        """Apply a manifest on the server's side, whoever owns its fields. Returns the object."""
        slash = f"/{subresource}" if subresource else ""
        path = f"{self.path(manifest)}{slash}?fieldManager={manager}&force=true"
        answer = self.request("PATCH", path, manifest, content_type="application/apply-patch+yaml")
        applied: Manifest = _succeeded(answer, f"apply {manifest['kind']} {manifest['metadata']['name']}")
        return applied

    def delete(self, manifest: Mapping[str, Any]) -> None:
        """Delete an object at once, if it is there."""
        answer = self.request("DELETE", f"{self.path(manifest)}?gracePeriodSeconds=0")
        if answer.status != 404:
            _succeeded(answer, f"delete {manifest['kind']} {manifest['metadata']['name']}")

    def install(self, *manifests: Path) -> None:
        """Apply files with CustomResourceDefinitions and others; returns when the kinds are served."""
        for file in manifests:
            for manifest in yaml.safe_load_all(file.read_text()):
                self.apply(manifest)
                if manifest["kind"] == "CustomResourceDefinition":
                    self._await_served(manifest)

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A namespace with a name of its own, which goes with what is in it."""
        name = f"test-{secrets.token_hex(4)}"
        body: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.apply(body)
        try:
            yield name
        finally:
            for group, resource in NAMESPACED:
                self.request("DELETE", f"{group}/namespaces/{name}/{resource}?gracePeriodSeconds=0")
            self.delete(body)
            # What the namespace controller does when all is gone.
            self.request("PUT", f"/api/v1/namespaces/{name}/finalize", body)

    def _await_served(self, crd: Manifest) -> None:
        """Wait until the API serves a new kind in all its versions: established comes a little before that."""
        spec = crd["spec"]
        paths = [f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}" for version in spec["versions"]]
        deadline = time.monotonic() + READY_WITHIN
        while not all(self.request("GET", f"{path}?limit=1") for path in paths):
            if time.monotonic() > deadline:
                raise ClusterError(f"{crd['metadata']['name']} is not served")
            time.sleep(0.05)

    # -------------------------------------------------------------------------------------------------------- users

    def token_for(self, account: str, namespace: str = "default", *, pod: str | None = None) -> str:
        """A fresh token of a service account, which is made if needed; bound to a pod, it names the pod's node too.

        The API gives none for less than ten minutes. To make one worthless, delete the account or the pod: the API
        server answers 401, to a token that was used at the latest ten seconds later (it remembers whom it let in).
        """
        self.apply({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace},
        })  # fmt: skip
        spec: Manifest = {"expirationSeconds": 3600}
        if pod is not None:
            found = _succeeded(self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}"), f"pod {pod}")
            spec["boundObjectRef"] = {
                "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": found["metadata"]["uid"],
            }  # fmt: skip
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = _succeeded(self.request("POST", path, asked), f"a token of {namespace}/{account}")
        return str(answer["status"]["token"])

    def kubeconfig(
        self, user: str = "admin", *groups: str, token: str | None = None, server: str | None = None
    ) -> Path:
        """Write a kubeconfig. user: who, by a client certificate, unless a token says who.

        server: another address than the API server's, such as a proxy's; plain HTTP, or with a certificate of the
        same authority.
        """
        self._kubeconfigs += 1
        file = self.dir / f"kubeconfig-{self._kubeconfigs}"
        cluster = {"server": server or self.url, "certificate-authority-data": _base64(self.ca)}
        if token is None and user == "admin":
            token = self.token
        if token is None:
            key, certificate = _signed(self.dir, f"user-{self._kubeconfigs}", f"/CN={user}", *groups)
            credentials = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        else:
            credentials = {"token": token}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        return file

    def kubectl(self, *args: str | Path, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """Run kubectl as the administrator, or with another kubeconfig. Returns what it printed."""
        command = [binaries.program("kubectl"), "--kubeconfig", kubeconfig or self._admins_kubeconfig, *args]
        environment = {**os.environ, "HOME": str(self.dir)}  # its cache of kinds is this cluster's
        done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    @cached_property
    def _admins_kubeconfig(self) -> Path:
        return self.kubeconfig()

    def requests(self, user: str = "") -> list[Request]:
        """Every request so far that has begun to be answered, by this user if one is named; needs `audit`."""
        if not self._audit:
            raise ClusterError("this cluster keeps no audit log: make it with Cluster(audit=True)")
        for line in self._new_in_audit_log():
            entry = json.loads(line)
            self._requests[entry["auditID"]] = Request(
                user=entry["user"].get("username", ""),
                verb=entry["verb"],
                path=entry["requestURI"],
                resource=entry.get("objectRef", {}).get("resource", ""),
                code=entry.get("responseStatus", {}).get("code", 0),
            )
        return [request for request in self._requests.values() if user in ("", request.user)]

    def _new_in_audit_log(self) -> list[bytes]:
        """The whole lines that have come since the last call."""
        with (self.dir / "audit.log").open("rb") as log:
            log.seek(self._audited)
            whole, end, _ = log.read().rpartition(b"\n")
        self._audited += len(whole) + len(end)
        return whole.splitlines()


# What `namespace` removes with itself: the kinds that tests look at across namespaces.
NAMESPACED = [
    ("/apis/cilium.io/v2", "ciliumlocalredirectpolicies"),
    ("/api/v1", "pods"),
    ("/apis/discovery.k8s.io/v1", "endpointslices"),
]
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def _succeeded(answer: Answer, what: str) -> Any:
    if not answer:
        words = answer.body.get("message", answer.body) if isinstance(answer.body, dict) else answer.body
        raise ClusterError(f"{what}: {answer.status} {words}")
    return answer.body


# -------------------------------------------------------------------------------------------------------- processes


class _Process:
    """A program that may be started, killed, and started again; it dies with this process."""

    def __init__(self, name: binaries.Program, room: Path) -> None:
        self._name, self._log = name, room / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        """Start it, in a session of its own: Ctrl-C is for the test, which ends it."""
        assert self._process is None, f"{self._name} runs already"
        command = ["setpriv", "--pdeathsig", "KILL", str(binaries.program(self._name)), *flags]
        with self._log.open("ab") as log:
            self._process = _starter.submit(_popen, command, log).result()

    def wait(self, ready: Callable[[], object]) -> None:
        """Wait until it answers. Raises ClusterError if it ends or never does."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                if ready():
                    return
            except (OSError, http.client.HTTPException, ClusterError):
                pass  # not yet
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"{self._name} does not answer; its last words:\n{self._last_words()}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def _popen(command: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((LOCALHOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(f"{LOCALHOST} has no free ports from {PORTS.start} to {PORTS.stop - 1}")


def _lease(room: Path) -> IO[str]:
    """Mark a directory as in use, as long as this process lives."""
    file = (room / "lease").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _sweep() -> None:
    """Remove directories that killed processes left."""
    for room in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (room / "lease").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room)
        except OSError:
            continue  # in use, or not ours, or just being made


# ------------------------------------------------------------------------------------------------------------- keys


def _write_keys(room: Path) -> None:
    """An authority, the API server's certificate, and the key that service accounts' tokens are signed with."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        room, "req", "-x509", *key, "-days", "365", "-subj", "/CN=lrp-operator test authority",
        "-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip
    _signed(room, "server", "/CN=kube-apiserver")
    _openssl(room, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key")


def server_tls(room: Path) -> ssl.SSLContext:
    """What a server on loopback proves itself with to clients that trust this cluster's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(room / "server.crt", room / "server.key")
    return context


def _signed(room: Path, name: str, subject: str, *groups: str) -> tuple[Path, Path]:
    """A key, and a certificate by the cluster's authority: for loopback, and for a user in groups."""
    subject += "".join(f"/O={group}" for group in groups)
    _openssl(
        room, "req", "-x509", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "365", "-subj", subject,
        "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth",
        "-addext", f"subjectAltName=IP:{LOCALHOST},DNS:localhost,DNS:kubernetes.default.svc",
        "-keyout", f"{name}.key", "-out", f"{name}.crt",
    )  # fmt: skip
    return room / f"{name}.key", room / f"{name}.crt"


def _openssl(room: Path, *args: str) -> None:
    done = subprocess.run(["openssl", *args], cwd=room, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"openssl {args[0]}: {done.stderr.strip()}")


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
