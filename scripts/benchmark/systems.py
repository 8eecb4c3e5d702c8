"""What is compared: a server of a directory and its clients. Here nfsfuse, and the directory itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final

from nfsfuse.cli import registry
from scripts.benchmark.figures import Cost
from scripts.rig.kernel import fuse_mounts_below
from scripts.rig.processes import Finished, parent_of, poll_until, run
from scripts.rig.rig import BIN, Failed, Rig, Server
from scripts.rig.sweep import has_ended

COMMAND_SECONDS_MAX: Final = 60.0
"""For mounting, unmounting and starting, on a machine that is busy with something else."""


_CPUCLOCK_SCHED: Final = 2  # <linux/posix-timers.h>: the time that a process has run


class System(ABC):
    """One export, served afresh: a context manager. All it makes lies in *directory*; `mount` makes one client
    more. Raises Failed when something does not start."""

    name: ClassVar[str]

    def __init__(self, rig: Rig, directory: Path) -> None:
        self.rig = rig
        self.directory = directory
        self.export = directory / "export"
        self._clients = 0
        self._mounted: list[Path] = []
        self._cleanup = ExitStack()

    @classmethod
    @abstractmethod
    def lacking(cls) -> str | None:
        """Why it cannot be measured here; None if it can."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Of the program, for the record."""

    def __enter__(self) -> System:
        self.export.mkdir(parents=True)
        try:
            self._start(self._cleanup)
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with self._cleanup:
            for mountpoint in list(self._mounted):
                self.unmount(mountpoint)

    def mount(self) -> Path:
        """A new client: where it sees the export."""
        self._clients += 1
        mountpoint = self.directory / f"client-{self._clients}"
        mountpoint.mkdir()
        self._mount(mountpoint)
        self._mounted.append(mountpoint)
        return mountpoint

    def unmount(self, mountpoint: Path) -> None:
        """The client goes, with all it has cached."""
        self._mounted.remove(mountpoint)
        self._unmount(mountpoint)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """A client that has cached nothing yet."""
        mountpoint = self.mount()
        try:
            yield mountpoint
        finally:
            self.unmount(mountpoint)

    def run(self, *argv: str | Path, seconds: float = COMMAND_SECONDS_MAX, cwd: Path | None = None) -> Finished:
        """Run a program that may use this system's clients; if it hangs in one, they are aborted."""
        return run(argv, seconds, self.rig.environment, self.directory, cwd)

    def cost(self) -> Cost:
        """Processor time in seconds that the server and the clients that are mounted have used so far."""
        clients = (pid for mountpoint in self._mounted for pid in self._client_pids(mountpoint))
        return Cost(_cpu_seconds(self._server_pids()), _cpu_seconds(clients))

    @abstractmethod
    def _server_pids(self) -> Iterable[int]:
        """The server's processes."""

    @abstractmethod
    def _client_pids(self, mountpoint: Path) -> Iterable[int]:
        """The processes that serve a mount."""

    @abstractmethod
    def _start(self, cleanup: ExitStack) -> None:
        """Start the server; what ends it is registered with *cleanup*."""

    @abstractmethod
    def _mount(self, mountpoint: Path) -> None: ...

    def _unmount(self, mountpoint: Path) -> None:
        done = self.run("umount", mountpoint)
        if done.status != 0:
            raise Failed(f"{self.name}: {done.errors.strip()}")

    def _wait_for_mount(self, mountpoint: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        def usable_or_over() -> bool:
            if process.poll() is not None:
                return True
            return bool(fuse_mounts_below(mountpoint)) and self.run("stat", mountpoint).status == 0

        poll_until(usable_or_over, COMMAND_SECONDS_MAX, f"{self.name} mounts", pause=0.02)
        if process.poll() is not None:
            raise Failed(f"{self.name} does not mount: {log.read_text().strip()[-1000:]}")


class Local(System):
    """The directory itself, without a network filesystem: what all others are on top of.

    A fresh client of it has the kernel's page cache of the server: nothing is read from the disk by any
    system here."""

    name = "local"

    @classmethod
    def lacking(cls) -> str | None:
        return None

    @classmethod
    def version(cls) -> str:
        return f"Linux {os.uname().release}"

    def mount(self) -> Path:
        return self.export

    def unmount(self, mountpoint: Path) -> None:
        pass

    def _server_pids(self) -> Iterable[int]:
        return ()

    def _client_pids(self, mountpoint: Path) -> Iterable[int]:
        raise AssertionError("the local directory is not mounted")

    def _start(self, cleanup: ExitStack) -> None:
        pass

    def _mount(self, mountpoint: Path) -> None:
        raise AssertionError("the local directory is not mounted")


class Nfsfuse(System):
    """This checkout, or (`references.before`) another one: *bin* is where its programs are."""

    name = "nfsfuse"
    bin: ClassVar[Path] = BIN

    def __init__(self, rig: Rig, directory: Path) -> None:
        super().__init__(rig, directory)
        self._server: Server | None = None
        self._daemons: dict[Path, int] = {}

    @classmethod
    def lacking(cls) -> str | None:
        return None

    @classmethod
    def version(cls) -> str:
        return version("nfsfuse")

    def _server_pids(self) -> Iterable[int]:
        assert self._server is not None
        return (self._server.process.pid,)

    def _client_pids(self, mountpoint: Path) -> Iterable[int]:
        return (self._daemons[mountpoint],)

    def _start(self, cleanup: ExitStack) -> None:
        state = self.directory / "state"
        arguments = ["--state-dir", str(state)]
        self._server = self.rig.server(self.export, "127.0.0.1:0", arguments, (self.bin / "nfsfuse-server",))
        cleanup.callback(self._server.stop)

    def _mount(self, mountpoint: Path) -> None:
        assert self._server is not None
        options = f"log={mountpoint.with_suffix('.log')}"
        done = self.run(self.bin / "nfsfuse", "mount", self._server.address, mountpoint, "-o", options)
        if done.status != 0:
            raise Failed(f"{self.name}: {done.errors.strip()}")
        self._daemons[mountpoint] = self._served_by(mountpoint)

    def _served_by(self, mountpoint: Path) -> int:
        pid = registry.served_by(str(mountpoint))
        assert pid is not None, f"nobody serves {mountpoint}"
        return pid

    def _unmount(self, mountpoint: Path) -> None:
        super()._unmount(mountpoint)
        pid = self._daemons.pop(mountpoint)
        poll_until(lambda: has_ended(pid), COMMAND_SECONDS_MAX, "the end of the daemon")


def family(pid: int) -> list[int]:
    """A process and all that descend from it and live."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := parent_of(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def _cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all threads of these processes, those that have ended included. Their own clock
    (clock_getcpuclockid(3)) counts in nanoseconds, where /proc/PID/stat has hundredths of a second."""
    total = 0.0
    for pid in pids:
        # A process that ends just now has no clock any more; what it has used is then left out.
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return total
