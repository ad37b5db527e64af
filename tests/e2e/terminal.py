"""A person's terminal, for tests: each command is shown with what it prints, as a person would see both."""

import json
import subprocess
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
# What has been measured so far, in this run.
MEASURED: list[str] = []


class CommandError(AssertionError):
    """A command failed; the text has its words."""


class Terminal:
    """Runs lines of shell at the top of the tree."""

    def __call__(self, line: str, *, stdin: str = "", check: bool = True) -> str:
        """Show a line, run it, show what it prints, and return that."""
        print(f"$ {line}", flush=True)
        code, output = self._run(line, stdin)
        print(output, end="" if output.endswith("\n") or not output else "\n", flush=True)
        if check and code:
            raise CommandError(f"`{line}` ended with {code}: {output}")
        return output

    def quietly(self, line: str, *, stdin: str = "") -> str:
        """Run a line that a person would not care to see."""
        code, output = self._run(line, stdin)
        if code:
            raise CommandError(f"`{line}` ended with {code}: {output}")
        return output

    @cached_property
    def node(self) -> str:
        """The node that the walk is on: the first that takes any pod."""
        return str(
            next(node["metadata"]["name"] for node in self.get("nodes")["items"] if not node["spec"].get("taints"))
        )

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests that a test has made. Pods go to the walk's node: redirects don't leave a node."""
        for manifest in manifests:
            if manifest["kind"] == "Pod":
                manifest["spec"]["nodeSelector"] = {"kubernetes.io/hostname": self.node}
        objects = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("kubectl apply -f -", stdin=json.dumps(objects))

    def get(self, what: str) -> Any:
        """An object, or a list of them, as `kubectl get` has it."""
        return json.loads(self.quietly(f"kubectl get {what} -o json"))

    def say(self, words: str) -> None:
        """Tell what the commands do not."""
        print(f"# {words}", flush=True)

    def measured(self, words: str) -> None:
        """Tell a figure, and once more when all is over."""
        MEASURED.append(words)
        self.say(words)

    def _run(self, line: str, stdin: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", line],
            input=stdin,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


def eventually(attempt: Callable[[], T], within: float = 60.0) -> T:
    """Try until it is true and raises no AssertionError; return what it gives, or raise what it raised last."""
    deadline = time.monotonic() + within
    while True:
        try:
            if found := attempt():
                return found
            raise AssertionError(f"not within {within:.0f} s")  # noqa: TRY301 (as if it had raised it)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
