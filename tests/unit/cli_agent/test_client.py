"""What else may answer on the socket, and how it is told."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrp_operator.agent.apimodel import Services
from lrp_operator.cli.client import AgentError, BadRequestError, Client, NoAgentError


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[Client]:
    """Something that takes one request on a socket and says the same to everybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield Client(path)
        server.join()


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (
            http('{"apiVersion": "v2", "agentVersion": "9.0"}'),
            AgentError,
            r"the agent \(9\.0\) speaks API v2, this",
        ),
        (http('{"apiVersion": "v2", "agentVersion": "9.0"}', "404 Not Found"), AgentError, "speaks API v2"),
        (http("<html>"), AgentError, "no agent that this lrpctl"),
        (http('{"apiVersion": "v1"}'), AgentError, "no agent that this lrpctl"),
        (http('{"apiVersion": "v1", "error": "busy"}', "503 Service Unavailable"), AgentError, "^busy$"),
        (http('{"apiVersion": "v1", "error": "what?"}', "400 Bad Request"), BadRequestError, r"^what\?$"),
        (b"SSH-2.0-OpenSSH\r\n", NoAgentError, "no agent answers"),
        (b"", NoAgentError, "no agent answers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", AgentError, "broke off"),
    ],
)
def test_odd_answers(tmp_path: Path, answer: bytes, kind: type[AgentError], sentence: str) -> None:
    with answering(tmp_path / "s", answer) as client, pytest.raises(kind, match=sentence) as raised:
        client.get("services", Services)
    assert type(raised.value) is kind


def test_what_is_added_later_is_ignored(tmp_path: Path) -> None:
    text = '{"apiVersion": "v1", "agentVersion": "8", "new": 1, "node": "n", "programmed": true, "frontends": []}'
    with answering(tmp_path / "s", http(text)) as client:
        assert client.get("services", Services).node == "n"


def test_a_stale_socket_is_no_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
    with pytest.raises(NoAgentError, match="Connection refused"):
        Client(tmp_path / "s").get("services", Services)
