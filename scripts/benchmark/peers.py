"""The peers that promise less: sshfs and GlusterFS, from Debian's packages, on loopback.

Each is set up as its own users would for one directory that several machines share, with the caches on that
it has on by default or that its documentation recommends for this; none is made slower.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from scripts.benchmark.systems import COMMAND_SECONDS_MAX, System, family
from scripts.rig.processes import poll_until
from scripts.rig.rig import Failed, Rig

PACKAGES: Final = ("sshfs", "openssh-server", "glusterfs-server", "glusterfs-client")


def install() -> None:
    """Install the packages of all peers (root, Debian). Raises Failed."""
    environment = {"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-o", "Dpkg::Use-Pty=0", *words], env=environment, check=False)
        if done.returncode != 0:
            raise Failed(f"apt-get {words[0]} failed; its reason is above")


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def _free_port() -> int:
    """A port that was free a moment ago: these servers cannot be asked which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Peer(System):
    """A system of other people's: its server and clients are children that die with this process."""

    programs: tuple[str, ...]

    def __init__(self, rig: Rig, directory: Path) -> None:
        super().__init__(rig, directory)
        self._server: subprocess.Popen[bytes] | None = None
        self._daemons: dict[Path, subprocess.Popen[bytes]] = {}
        self._port = 0

    @classmethod
    def lacking(cls) -> str | None:
        missing = [name for name in cls.programs if _program(name) is None]
        return f"{', '.join(missing)} not installed (--install-peers)" if missing else None

    def _server_pids(self) -> Iterable[int]:
        assert self._server is not None
        return family(self._server.pid)

    def _client_pids(self, mountpoint: Path) -> Iterable[int]:
        return family(self._daemons[mountpoint].pid)

    def _start(self, cleanup: ExitStack) -> None:
        self._port = _free_port()
        log = self.directory / "server.log"
        self._server = self._child(self._server_command(), log)
        cleanup.callback(_end, self._server)
        server = self._server
        poll_until(
            lambda: server.poll() is not None or _answers(self._port),
            COMMAND_SECONDS_MAX,
            f"{self.name} serves",
        )
        if server.poll() is not None:
            raise Failed(f"{self.name} does not serve: {log.read_text().strip()[-1000:]}")

    def _mount(self, mountpoint: Path) -> None:
        log = mountpoint.with_suffix(".log")
        daemon = self._daemons[mountpoint] = self._child(self._client_command(mountpoint), log)
        try:
            self._wait_for_mount(mountpoint, daemon, log)
        except BaseException:
            _end(daemon)
            raise

    def _unmount(self, mountpoint: Path) -> None:
        super()._unmount(mountpoint)
        self._daemons.pop(mountpoint).wait(COMMAND_SECONDS_MAX)

    def _child(self, argv: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        # sshd overwrites its environment, by which the rig would find it: so it dies with its parent.
        with log.open("a") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.rig.environment,
                start_new_session=True,
            )

    def _server_command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def _client_command(self, mountpoint: Path) -> Sequence[str | Path]:
        raise NotImplementedError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Sshfs(Peer):
    """sshfs over a private sshd of this run's own keys."""

    name = "sshfs"
    programs = ("sshfs", "sshd", "ssh-keygen")

    @classmethod
    def version(cls) -> str:
        return f"{_first_line('sshfs', '-V')}, {_first_line('ssh', '-V')}"

    def _start(self, cleanup: ExitStack) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists, and makes none
        for name in ("host", "user"):
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name).succeeded()
        super()._start(cleanup)

    def _server_command(self) -> Sequence[str | Path]:
        configuration = self.directory / "sshd.conf"
        configuration.write_text(
            f"Port {self._port}\nListenAddress 127.0.0.1\nHostKey {self.directory}/host\n"
            f"AuthorizedKeysFile {self.directory}/user.pub\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin prohibit-password\nPidFile none\nSubsystem sftp internal-sftp\n"
        )
        sshd = _program("sshd")
        assert sshd is not None
        return [sshd, "-D", "-e", "-f", configuration]

    def _client_command(self, mountpoint: Path) -> Sequence[str | Path]:
        options = f"IdentityFile={self.directory}/user,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
        source = f"root@127.0.0.1:{self.export}"
        return ["sshfs", "-f", "-p", str(self._port), "-o", options, source, mountpoint]


class Gluster(Peer):
    """GlusterFS: one brick without glusterd, the usual stack of translators on both sides."""

    name = "glusterfs"
    programs = ("glusterfsd", "glusterfs")

    @classmethod
    def version(cls) -> str:
        return _first_line("glusterfs", "--version")

    def _server_command(self) -> Sequence[str | Path]:
        volume = self.directory / "server.vol"
        volume.write_text(
            _volumes(
                ("posix", "storage/posix", {"directory": str(self.export)}),
                ("locks", "features/locks", {}),
                (
                    "upcall",
                    "features/upcall",
                    {"cache-invalidation": "on", "cache-invalidation-timeout": "600"},
                ),
                ("threads", "performance/io-threads", {"thread-count": "8"}),
                ("brick", "debug/io-stats", {}),
                (
                    "server",
                    "protocol/server",
                    {
                        "transport-type": "tcp",
                        "transport.socket.bind-address": "127.0.0.1",
                        "transport.socket.listen-port": str(self._port),
                        "auth.addr.brick.allow": "127.0.0.1",
                    },
                ),
            )
        )
        log = self.directory / "brick.log"
        return ["glusterfsd", "-N", "-f", volume, "-l", log, "-p", self.directory / "brick.pid"]

    def _client_command(self, mountpoint: Path) -> Sequence[str | Path]:
        volume = mountpoint.with_suffix(".vol")
        volume.write_text(
            _volumes(
                (
                    "client",
                    "protocol/client",
                    {
                        "transport-type": "tcp",
                        "remote-host": "127.0.0.1",
                        "remote-port": str(self._port),
                        "remote-subvolume": "brick",
                    },
                ),
                ("write-behind", "performance/write-behind", {}),
                ("read-ahead", "performance/read-ahead", {}),
                ("io-cache", "performance/io-cache", {}),
                ("quick-read", "performance/quick-read", {}),
                ("md-cache", "performance/md-cache", {"cache-invalidation": "on", "md-cache-timeout": "600"}),
            )
        )
        return ["glusterfs", "-N", "-f", volume, "-l", mountpoint.with_suffix(".gluster.log"), mountpoint]


def _volumes(*stack: tuple[str, str, dict[str, str]]) -> str:
    """A volume file: each translator on top of the one before it."""
    text, below = "", ""
    for name, kind, options in stack:
        lines = [f"volume {name}", f"  type {kind}"]
        lines += [f"  option {key} {value}" for key, value in options.items()]
        lines += [f"  subvolumes {below}"] if below else []
        text += "\n".join([*lines, "end-volume", "", ""])
        below = name
    return text
