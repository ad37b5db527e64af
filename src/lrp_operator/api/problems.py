"""How what is wrong in a policy is told: its place, and how to mend it."""

from typing import Any, NamedTuple


class FieldError(NamedTuple):
    """One thing wrong in a policy.

    path: the field, as in `spec.redirectBackend.toPorts[0].port`; message: what is wrong and how to mend it.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def quoted(value: Any) -> str:
    """Write a value for a message, on one line and not too long of it."""
    if isinstance(value, str):
        return f'"{_shortened(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"  # Python refuses to write one of thousands of digits
    if isinstance(value, int | float):
        return str(value)
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "nothing"


def _shortened(text: str, limit: int = 60) -> str:
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[:limit])
    return clean + "..." if len(text) > limit else clean
