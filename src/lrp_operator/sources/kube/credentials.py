"""Who we are to the API server, and where it is: from a pod's service account, or from a kubeconfig.

Both rotate under a running program. A service account's files are read at each request: they are small, in memory, and
the kubelet replaces them hourly. A kubeconfig is read by the `kubernetes` package (exec plugins, client certificates,
token files and all), in a thread, because a plugin is a process that may take seconds; it is read anew before its
credentials expire, and whenever the server has refused them.
"""

import asyncio
import importlib
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from lrp_operator.sources.kube.errors import CredentialsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EARLY_SECONDS = 30.0
"""So long before they expire, credentials are fetched anew."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a request needs. tls: None for plain HTTP. authorization: the header's value, empty for none.

    server_name: the name that the server's certificate is checked for, where it is not the one in the URL.
    """

    server: str
    tls: ssl.SSLContext | None
    authorization: str = ""
    server_name: str | None = None
    proxy: str | None = None


class Credentials(Protocol):
    """Where access comes from."""

    @property
    def server(self) -> str:
        """The API server's URL, for people."""

    async def access(self) -> Access:
        """Return what to use now. Raises CredentialsError."""
        ...

    async def refused(self, access: Access) -> None:
        """Tell that the server would not take this access (401): the next one is to be a new one."""


def checked_server(url: str) -> str:
    """Return the URL of an API server without a trailing slash. Raises CredentialsError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
        raise CredentialsError(f"{url!r} is no address of an API server; one looks like https://10.0.0.1:6443")
    return url.rstrip("/")


def _header(text: str) -> str:
    """Return a header's value without blanks around it: files of tokens may end with a newline."""
    text = text.strip()
    if not text.isprintable():
        raise CredentialsError("the token for the API server is none: it has characters that no token has")
    return text


# --- A pod's service account ------------------------------------------------------------------------------------------


def in_cluster_server() -> str:
    """Return the address that the kubelet gives to every pod; empty outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""


class ServiceAccount:
    """A pod's credentials: a token and a certificate authority, in files that are replaced as they rotate.

    server: the API server's URL; by default the one that the kubelet tells every pod. It leads through kube-proxy, so
    a cluster without kube-proxy needs another one: a node's or a load balancer's.
    """

    def __init__(self, server: str = "", directory: Path = SERVICE_ACCOUNT) -> None:
        """Raise CredentialsError if it is not known where the API server is."""
        if not (server := server or in_cluster_server()):
            raise CredentialsError(
                "where is the API server? KUBERNETES_SERVICE_HOST is not set (it is, in a pod); give --api-server URL"
            )
        self.server = checked_server(server)
        self._directory = directory
        self._ca = b""
        self._tls: ssl.SSLContext | None = None

    @staticmethod
    def is_here(directory: Path = SERVICE_ACCOUNT) -> bool:
        """Whether there is a service account's token, as there is in a pod."""
        return (directory / "token").exists()

    async def access(self) -> Access:
        """Read what the files hold now. Raises CredentialsError."""
        return self._read()

    async def refused(self, access: Access) -> None:
        """Nothing to do: the files are read at each request."""

    def _read(self) -> Access:
        try:
            token = (self._directory / "token").read_text(encoding="ascii").strip()
            ca = (self._directory / "ca.crt").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsError(f"the service account's files can't be read: {error}") from error
        if self._tls is None or ca != self._ca:
            self._tls = _trusting(ca, self._directory / "ca.crt")
            self._ca = ca
        tls = self._tls if self.server.startswith("https") else None
        return Access(self.server, tls, _header(f"Bearer {token}"))


def _trusting(ca: bytes, path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(f"{path} holds no certificates: {error}") from error


# --- A kubeconfig -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    access: Access
    expires: float | None  # by time.time()


class Kubeconfig:
    """Credentials from a kubeconfig file (or several, separated by ":", as kubectl takes them).

    context: None for the file's current one. server: instead of the file's.
    """

    def __init__(self, path: str, context: str | None = None, server: str = "") -> None:
        """Read the file, but run no plugin yet. Raises CredentialsError.

        namespace: the context's own, empty if it has none.
        """
        self._path = path
        self._context = context
        self._override = checked_server(server) if server else ""
        self._loaded: _Loaded | None = None
        self._loading = asyncio.Lock()
        reader = _Reader(path, context)
        self.server = self._override or checked_server(reader.server)
        self.namespace = reader.namespace

    async def access(self) -> Access:
        """Return what was read, or read it (anew). Raises CredentialsError."""
        async with self._loading:
            if self._loaded is None or self._is_expiring(self._loaded):
                self._loaded = await asyncio.to_thread(self._load)
            return self._loaded.access

    async def refused(self, access: Access) -> None:
        """Have it read anew, if no one has done so meanwhile."""
        if self._loaded is not None and self._loaded.access is access:
            self._loaded = None

    @staticmethod
    def _is_expiring(loaded: _Loaded) -> bool:
        return loaded.expires is not None and time.time() >= loaded.expires - EARLY_SECONDS

    def _load(self) -> _Loaded:
        return _Reader(self._path, self._context).load(self._override)


class _Reader:
    """The `kubernetes` package's reader of kubeconfigs, imported only where there is one to read.

    It is reached by name, because it has no types and is large: the type checker would read all of it.
    """

    def __init__(self, path: str, context: str | None) -> None:
        self._path = path
        self._config: Any = importlib.import_module("kubernetes.config.kube_config")
        self._errors: tuple[type[Exception], ...] = (
            importlib.import_module("kubernetes.config.config_exception").ConfigException,
            *(OSError, ValueError, TypeError, KeyError, AttributeError),  # what it makes of a file of another shape
            importlib.import_module("yaml").YAMLError,
        )
        self._merged: Any = self._guarded(lambda: self._config.KubeConfigMerger(path).config)
        if self._merged is None:
            raise CredentialsError(f"there is no kubeconfig {path}")
        self._loader: Any = self._guarded(
            lambda: self._config.KubeConfigLoader(self._merged, active_context=context, config_base_path=None)
        )
        self._context: Any = self._guarded(lambda: self._loader.current_context["context"])

    @property
    def server(self) -> str:
        """The API server's URL as the file has it."""
        cluster = self._guarded(lambda: self._merged["clusters"].get_with_name(self._context["cluster"])["cluster"])
        return str(self._guarded(lambda: cluster["server"]))

    @property
    def namespace(self) -> str:
        """The context's namespace, empty if it has none."""
        written = self._context["namespace"] if "namespace" in self._context else ""  # noqa: SIM401 - it has no get
        return str(written or "")

    def load(self, server: str) -> _Loaded:
        """Read everything; runs the plugin if there is one. Raises CredentialsError."""
        configuration: Any = importlib.import_module("kubernetes.client").Configuration()
        self._guarded(lambda: self._loader.load_and_set(configuration))
        authorization = _header(str(configuration.api_key.get("BearerToken") or ""))
        if not authorization and not configuration.cert_file and self._has_plugin():
            raise CredentialsError(
                f"the exec plugin of user {self._context['user']!r} in {self._path} gave no credentials; "
                "run kubectl with that context to see why"
            )
        expiry = getattr(self._loader, "expiry", None)
        server = server or str(configuration.host)
        access = Access(
            server=server,
            tls=self._guarded(lambda: _tls_of(configuration)) if server.startswith("https") else None,
            authorization=authorization,
            server_name=configuration.tls_server_name,
            proxy=configuration.proxy,
        )
        return _Loaded(access, expiry.timestamp() if expiry else None)

    def _has_plugin(self) -> bool:
        user = self._merged["users"].get_with_name(self._context["user"], safe=True)
        return user is not None and "exec" in user["user"]

    def _guarded(self, read: Any) -> Any:
        """Put what the package says of a broken file into our words."""
        try:
            return read()
        except self._errors as error:
            raise CredentialsError(f"kubeconfig {self._path} can't be used: {error}") from error


def _tls_of(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
