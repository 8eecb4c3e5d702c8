"""Real mounts of the toy filesystem, and programs that use them.

The daemon and every program run in processes of their own: a mapping of a mount, touched by the process that
serves it, deadlocks.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 20.0
"""For anything that should be immediate: a stuck mount fails the test rather than the run."""

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


class Program:
    """A program at work in a mount. *code* sees ``path`` and says what it has to say with ``say(value)``."""

    def __init__(self, path: Path, code: str, *arguments: str) -> None:
        prelude = (
            "import sys,os,json,mmap,fcntl,struct,signal,time,errno\n"
            "path=sys.argv[1]\n"
            "def say(value): print(json.dumps(value), flush=True)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + code, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def listen(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the program ended: {self.process.stderr and self.process.stderr.read()}")
        return json.loads(line)

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self) -> list[Any]:
        out, err = self.process.communicate(timeout=TIMEOUT_SECONDS)
        assert self.process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def end(self) -> None:
        """At the latest here; the mount is gone by then, so nothing holds it."""
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_SECONDS)


class Daemon:
    """toyfs.py, mounted at *path*."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.programs: list[Program] = []
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._early: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self.stderr = path.parent / "daemon.stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("toyfs.py")), str(path), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(),
                start_new_session=True,  # what ends the whole run leaves it time to unmount
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.started = self._answer(0)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({"id": -1, "error": "the daemon ended"})

    def _answer(self, number: int) -> dict[str, Any]:
        while number not in self._early:
            answer = self._answers.get(timeout=TIMEOUT_SECONDS)
            if answer["id"] == -1:
                raise AssertionError(f"the daemon ended: {self.stderr.read_text()}")
            self._early[answer["id"]] = answer
        return self._early.pop(number)

    def begin(self, command: str, **arguments: Any) -> int:
        """Send a command, not waiting for its answer (`result`)."""
        self._last_id += 1
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"id": self._last_id, "command": command, "arguments": arguments}) + "\n"
        )
        self.process.stdin.flush()
        return self._last_id

    def result(self, number: int) -> Any:
        answer = self._answer(number)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def ask(self, command: str, **arguments: Any) -> Any:
        return self.result(self.begin(command, **arguments))

    def put(self, name: str, data: bytes) -> int:
        ino = self.ask("write", name=name, data=base64.b64encode(data).decode())
        assert isinstance(ino, int)
        return ino

    def content(self, name: str) -> bytes:
        return base64.b64decode(self.ask("content", name=name))

    def facts(self, operation: str) -> list[dict[str, Any]]:
        return [entry["facts"] for entry in self.ask("journal", operation=operation)]

    def await_waiting(self, operation: str, count: int = 1) -> None:
        """Until *count* requests wait at *operation*'s gate."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.ask("status")["waiting"].get(operation, 0) != count:
            assert time.monotonic() < deadline, f"no request waits at {operation}"

    def await_journal(self, operation: str) -> None:
        """Until *operation* has been journaled: close(2) does not wait for its RELEASE."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while operation not in self.ask("status")["journaled"]:
            assert time.monotonic() < deadline, f"no {operation}"

    def program(self, code: str, name: str = "", *arguments: str) -> Program:
        program = Program(self.path / name, code, *arguments)
        self.programs.append(program)
        return program

    def run(self, code: str, name: str = "", *arguments: str) -> list[Any]:
        return self.program(code, name, *arguments).finish()

    def close(self) -> None:
        unmount = ["umount", "-l", str(self.path)]
        subprocess.run(unmount, check=False, capture_output=True, timeout=TIMEOUT_SECONDS)
        try:
            # A lazy unmount leaves the connection to the programs that still use it.
            for program in self.programs:
                if program.process.poll() is None:
                    program.process.kill()
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()  # closes the device: whoever waits gets ENOTCONN
            self.process.wait(timeout=TIMEOUT_SECONDS)
        for program in self.programs:
            program.end()
        self._reader.join(timeout=TIMEOUT_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()


Mounter = Callable[..., Daemon]
