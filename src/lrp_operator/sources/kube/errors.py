"""What can go wrong with the Kubernetes API, told apart by what one does about it.

    ApiFailure
    ├── ApiError            the server answered, and the answer is no
    ├── ApiUnreachable      no answer: no connection, a connection cut, a certificate that can't be trusted
    │   └── ApiSilent       a connection on which nothing came for too long
    └── CredentialsError    nothing to show to the server: a file that can't be read, a plugin that failed

Every text is a sentence for people. All of them are tried again, with growing pauses; none of them ends a program.
"""


class ApiFailure(Exception):  # noqa: N818 - not all of them are errors of ours
    """Base of all that can go wrong."""


class ApiError(ApiFailure):
    """The server's answer is no.

    reason: the API's own word for it ("Conflict", "Expired", ...), empty if the answer had none.
    retry_after: seconds that the server asks to wait before the next try; 0 if it does not.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"the API server says {status}{f' {reason}' if reason else ''}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def expired(self) -> bool:
        """Whether the history that was asked for is gone: everything has to be listed anew."""
        return self.status == 410 or self.reason in ("Expired", "Gone")


class ApiUnreachable(ApiFailure):
    """There is no answer."""


class ApiSilent(ApiUnreachable):
    """Nothing came for too long."""


class CredentialsError(ApiFailure):
    """There is nothing to show to the server."""
