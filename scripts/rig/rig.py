"""A server and mounts of it in a directory of their own: real processes, real mounts, all gone at the end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from nfsfuse.cli import registry
from scripts.rig.kernel import FuseMount, fuse_mounts_below
from scripts.rig.processes import Finished, run
from scripts.rig.sweep import MARK, sweep

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

BIN = Path(sys.executable).parent
"""Where the console scripts are: the virtual environment this interpreter belongs to."""

START_SECONDS_MAX = 30.0
"""For a server or a mount to become usable, on a machine that is busy with something else."""


class Failed(Exception):
    """A server or a mount did not do what it should; the text is what it said."""


SERVER: Final = (BIN / "nfsfuse-server",)


class Server:
    """A running nfsfuse-server, or what *command* is instead."""

    def __init__(
        self,
        rig: Rig,
        export: Path,
        listen: str,
        arguments: Sequence[str] = (),
        command: Sequence[str | Path] = SERVER,
    ) -> None:
        self.export = export
        self.arguments = arguments
        self.command = command
        self.log = rig.directory / f"server-{rig.count()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--export", export, "--listen", listen, "-v", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=rig.environment,
                start_new_session=True,
            )
        self.address = self._listening()

    def _listening(self) -> str:
        assert self.process.stdout is not None
        line = b""
        end = time.monotonic() + START_SECONDS_MAX
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            received = os.read(self.process.stdout.fileno(), 1024) if ready else b""
            if not received:
                self.kill()
                raise Failed(self.log.read_text().strip() or "the server did not begin to listen in time")
            line += received
        words = line.decode().split()
        assert words[:2] == ["listening", "on"], line
        return words[2]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Send a signal, and return the exit status. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(number)
        status = self.process.wait(seconds)
        self._close()
        return status

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


class Rig:
    """A directory with servers, exports and mounts in it; a context manager, which sweeps it all away.

    *base* is where the directory is made (default: the system's place for temporary files). Use `deadline`
    around whatever touches a mount in this process: a thread that hangs in a mount cannot free itself.
    """

    def __init__(self, base: Path | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nfsfuse-", dir=base)).resolve()
        self.environment = {
            **os.environ,
            MARK: str(self.directory),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        self.servers: list[Server] = []
        self._counter = 0
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "scripts.rig.janitor", self.directory],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def count(self) -> int:
        """A number not given before."""
        self._counter += 1
        return self._counter

    def deadline(self, seconds: float | None) -> None:
        """From now on: let go of everything that still hangs in a mount after *seconds*; None ends that."""
        self._tell("rest" if seconds is None else f"deadline {seconds}")

    def server(
        self,
        export: Path | None = None,
        listen: str | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str | Path] = SERVER,
    ) -> Server:
        """Start a server: of a new directory, on a Unix socket, of this checkout, unless told otherwise. Raises
        Failed."""
        number = self.count()
        if export is None:
            export = self.directory / f"export-{number}"
            export.mkdir()
        if "--state-dir" not in arguments:
            arguments = ["--state-dir", str(self.directory / f"state-{number}"), *arguments]
        server = Server(self, export, listen or f"unix:{self.directory}/socket-{number}", arguments, command)
        self.servers.append(server)
        return server

    def command(self, *argv: str | Path, seconds: float = START_SECONDS_MAX) -> Finished:
        """Run a program, with this checkout's nfsfuse first in PATH."""
        return run(argv, seconds, self.environment, self.directory)

    def mountpoint(self) -> Path:
        """A new directory to mount on."""
        result = self.directory / f"mount-{self.count()}"
        result.mkdir()
        return result

    def restart(self, server: Server, command: Sequence[str | Path] = ()) -> Server:
        """Start *server*, which was killed or stopped, once more: same export, address and state. *command*
        is another server's, if any."""
        assert server.process.poll() is not None
        again = Server(self, server.export, server.address, server.arguments, command or server.command)
        self.servers[self.servers.index(server)] = again
        return again

    def mount(
        self,
        server: Server,
        options: str = "",
        *,
        address: str | None = None,
        mountpoint: Path | None = None,
        command: Sequence[str | Path] = ("nfsfuse",),
    ) -> Path:
        """Mount what *server* exports; where: on a new directory, unless told otherwise. *address* is another
        way to it, *command* another client. The daemon logs to a file beside it. Raises Failed."""
        mountpoint = mountpoint or self.mountpoint()
        log = f"log={self.log_of(mountpoint)}"
        options = f"{log},{options}" if options else log
        mounted = self.command(*command, "mount", address or server.address, mountpoint, "-o", options)
        if mounted.status != 0:
            raise Failed(mounted.errors.strip())
        return mountpoint

    def log_of(self, mountpoint: Path) -> Path:
        """Where the daemon of a mount made by `mount` logs."""
        return mountpoint.with_suffix(".log")

    def daemon_of(self, mountpoint: Path) -> int:
        """The process that serves *mountpoint*."""
        pid = registry.served_by(str(mountpoint))
        assert pid is not None, f"nobody serves {mountpoint}"
        return pid

    def kernel_mount(self, mountpoint: Path) -> FuseMount | None:
        """The mount on *mountpoint* itself, if there is one."""
        return next(iter(fuse_mounts_below(mountpoint)), None)

    def close(self) -> list[str]:
        """End everything, orderly if possible; what had to be swept away by force, in words."""
        for mount in fuse_mounts_below(self.directory):
            mount.abort()  # whoever closes a rig has unmounted what should end in order
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
            server._close()
        found = sweep(self.directory)
        self.abandon()
        return found

    def abandon(self) -> None:
        """Leave everything as it is: what it does from now on is somebody else's."""
        if self._janitor.poll() is None:
            self._tell("done")
            self._janitor.communicate(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._janitor.stdin is not None
        self._janitor.stdin.write(line.encode() + b"\n")
        self._janitor.stdin.flush()
