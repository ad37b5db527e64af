"""Asks the agent on its unix socket. Standard library only: `lrpctl service list` should answer before one blinks.

An agent of another version may say things in other words. Every answer tells its API version, which is looked at before
anything else is decoded; a difference is a sentence, never a guess.
"""

import http.client
import os
import socket
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlencode

import msgspec

from lrp_operator import __version__
from lrp_operator.agent.apimodel import API_VERSION, Answer, Failure, StreamLine

EXIT_NOT_WELL = 1
EXIT_USAGE = 2
EXIT_NO_AGENT = 3
ANSWER_SECONDS = 15.0

A = TypeVar("A", bound=Answer)


class AgentError(Exception):
    """There is no answer; the text is a sentence for people, exit_code what the program ends with."""

    exit_code = EXIT_NOT_WELL


class NoAgentError(AgentError):
    """Nobody answers."""

    exit_code = EXIT_NO_AGENT


class BadRequestError(AgentError):
    """The agent does not understand what it is asked for."""

    exit_code = EXIT_USAGE


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent")
        self._path = path
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.line.settimeout(ANSWER_SECONDS)

    def connect(self) -> None:
        self.line.connect(str(self._path))
        self.sock = self.line

    def close(self) -> None:
        super().close()
        self.line.close()  # also when it never came to a connection


class Client:
    """One agent, known by its socket."""

    def __init__(self, api_socket: Path) -> None:
        self._path = api_socket

    def get(self, path: str, kind: type[A]) -> A:
        """Ask for one answer. Raises AgentError."""
        connection, response = self._request(f"/{API_VERSION}/{path}")
        try:
            return _decoded(response.read(), kind)
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"the agent broke off its answer: {error}") from error
        finally:
            connection.close()

    def stream(self, query: dict[str, str]) -> "Stream":
        """Watch redirects. Raises AgentError."""
        return Stream(*self._request(f"/{API_VERSION}/events?{urlencode(query)}"))

    def _request(self, path: str) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status == http.client.OK:
                return connection, response
            text, status = response.read(), response.status
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._nobody(error) from error
        connection.close()
        sentence = _decoded(text, Failure).error
        raise BadRequestError(sentence) if status == http.client.BAD_REQUEST else AgentError(sentence)

    def _nobody(self, error: Exception) -> AgentError:
        if isinstance(error, PermissionError):
            return NoAgentError(f"{self._path} is another user's: ask as root (sudo lrpctl ...)")
        if isinstance(error, TimeoutError):
            return NoAgentError(f"the agent on {self._path} does not answer; its log may say why")
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        return NoAgentError(
            f"no agent answers on {self._path} ({why}). Start one (lrp-agent --help), or name its socket with "
            "--api-socket or LRP_API_SOCKET. Redirects that are in the kernel work without an agent."
        )


class Stream:
    """Lines of the events stream. Use as a context manager; ends the watch when left."""

    def __init__(self, connection: _UnixConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def line(self, timeout: float) -> StreamLine | None:
        """Wait for the next line; None if none came in time (the stream is of no use after that). Raises AgentError."""
        try:
            self._connection.line.settimeout(max(timeout, 0.001))
            text = self._response.readline()
        except TimeoutError:
            return None
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"the agent broke off: {error}") from error
        if not text:
            raise AgentError("the agent has ended the stream (it is stopping)")
        return _decoded(text, StreamLine)


def _decoded(text: bytes, kind: type[A]) -> A:
    """Decode an answer after a look at its version. Raises AgentError."""
    try:
        head = msgspec.json.decode(text, type=Answer)
        if head.api_version != API_VERSION:
            raise AgentError(
                f"the agent ({head.agent_version}) speaks API {head.api_version}, this lrpctl ({__version__}) "
                f"{API_VERSION}: use the lrpctl of the agent's release (it is in the agent's image)"
            )
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise AgentError(f"what answers is no agent that this lrpctl ({__version__}) understands: {error}") from error
