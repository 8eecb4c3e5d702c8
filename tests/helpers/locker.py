"""A child process that takes locks as it is told: tests/programs/locker.c."""

from __future__ import annotations

import select
import signal
import subprocess
from pathlib import Path
from types import TracebackType

ANSWER_SECONDS_MAX = 30.0
"""For a command that is not to wait for anything."""


class Locker:
    """One process with files open. `tell` and `answer` are for commands that wait, `ask` is both."""

    def __init__(self, program: Path, *files: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._received = b""
        self.descriptors = [self.open(file) for file in files]

    def __enter__(self) -> Locker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def open(self, file: Path) -> int:
        """Open one more file, or the same again; its descriptor."""
        word, descriptor = self.ask(f"open {file}").split()
        assert word == "fd", descriptor
        return int(descriptor)

    def tell(self, command: str) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")

    def answered(self, seconds: float) -> bool:
        """Whether there is an answer within *seconds*."""
        assert self.process.stdout is not None
        return b"\n" in self._received or bool(select.select([self.process.stdout], [], [], seconds)[0])

    def answer(self, seconds: float = ANSWER_SECONDS_MAX) -> str:
        """The next answer."""
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            assert self.answered(seconds), f"no answer within {seconds} s"
            received = self.process.stdout.read(4096)
            assert received, "the locker has ended"
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def ask(self, command: str) -> str:
        """Give a command and return its answer."""
        self.tell(command)
        return self.answer()

    def kill(self) -> None:
        """End it, at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(ANSWER_SECONDS_MAX)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
