"""A TCP proxy between clients and a server, in a process of its own, that behaves as networks do."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType

from scripts.rig.rig import ROOT, Failed, Rig

ANSWER_SECONDS_MAX = 20.0
"""For a command, on a machine that is busy with something else."""

UP, DOWN = "up", "down"
"""Directions: to the server, and from it. Commands that are given none mean both."""


class Proxy:
    """A way to *server* at *address*; a context manager. Connections cannot be reordered, only whole ones
    replaced: TCP is between us and packets."""

    def __init__(self, rig: Rig, server: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.rig.proxy_process", server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=rig.environment,
            start_new_session=True,
        )
        self.address = f"127.0.0.1:{int(self._answer())}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def delay(self, seconds: float, *directions: str) -> None:
        """Everything arrives that much later."""
        self._do("delay", str(seconds), *directions)

    def stall(self, *directions: str) -> None:
        """Nothing arrives until `let_pass`, and then everything: an outage that TCP survives."""
        self._do("stall", *directions)

    def swallow(self, *directions: str) -> None:
        """Nothing arrives any more, and nobody is told: half-open. What was swallowed is never delivered, so
        follow it by `cut` before `let_pass`."""
        self._do("swallow", *directions)

    def let_pass(self, *directions: str) -> None:
        """The end of `stall` and `swallow`."""
        self._do("pass", *directions)

    def cut(self, *, reset: bool = True) -> None:
        """End all connections: by RST, or in order by FIN."""
        self._do("cut", "rst" if reset else "fin")

    def refuse(self) -> None:
        """New connections are refused."""
        self._do("refuse")

    def accept(self) -> None:
        """New connections are accepted again, at the same address."""
        self._do("accept")

    @property
    def accepted(self) -> int:
        """Connections so far."""
        return int(json.loads(self._ask("status"))["accepted"])

    def close(self) -> None:
        """End it, and every connection with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(ANSWER_SECONDS_MAX)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _do(self, *words: str) -> None:
        answer = self._ask(*words)
        if answer != "done":
            raise Failed(f"the proxy says: {answer}")

    def _ask(self, *words: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = b""
        end = time.monotonic() + ANSWER_SECONDS_MAX
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            received = os.read(self._process.stdout.fileno(), 1024) if ready else b""
            if not received:
                raise Failed("the proxy does not answer")
            line += received
        return line.decode().strip()
