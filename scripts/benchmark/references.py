"""What nfsfuse is held against besides its peers: the least that FUSE itself costs, and its own past."""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

from nfsfuse.cli.mounts import device_of
from nfsfuse.fuse.binding.read_ahead import set_read_ahead
from scripts.benchmark.peers import Peer
from scripts.benchmark.systems import COMMAND_SECONDS_MAX, Nfsfuse
from scripts.rig.rig import ROOT, Failed

PASSTHROUGH: Final = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
"""libfuse's own example of a filesystem that hands everything on to another directory, in C and without a
network; Debian's libfuse3-dev brings its source."""

READ_AHEAD_KIB: Final = 1024
"""As nfsfuse has it by default: what is compared is then who answers, and not how much is asked for."""

CHECKOUTS: Final = ROOT / ".before"
"""Other commits of this project, each with the environment that its own scripts/setup makes; kept."""

SETUP_SECONDS_MAX: Final = 900.0


class FuseC(Peer):
    """passthrough_ll: the limit of any FUSE filesystem. It trusts its caches for a day, as it is alone."""

    name = "fuse-c"
    programs = ("cc", "pkg-config")

    @classmethod
    def lacking(cls) -> str | None:
        if cls._source() is None:
            return f"no {PASSTHROUGH}: install libfuse3-dev, with its documentation"
        return super().lacking()

    @classmethod
    def version(cls) -> str:
        asked = ["pkg-config", "--modversion", "fuse3"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return f"passthrough_ll of libfuse {told.strip()}"

    @staticmethod
    def _source() -> Path | None:
        for path in (PASSTHROUGH, PASSTHROUGH.with_suffix(".c.gz")):
            if path.exists():
                return path
        return None

    def _start(self, cleanup: ExitStack) -> None:
        source = self._source()
        assert source is not None
        text = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
        copy = self.directory / PASSTHROUGH.name
        copy.write_bytes(text)
        done = self.run("pkg-config", "--cflags", "--libs", "fuse3").succeeded()
        headers = f"-I{source.parent}"
        words = shlex.split(done.output)
        self.run("cc", "-O2", headers, "-o", self.directory / "passthrough", copy, *words).succeeded()

    def _server_pids(self) -> Iterable[int]:
        return ()

    def _client_command(self, mountpoint: Path) -> Sequence[str | Path]:
        options = f"source={self.export},cache=always,flock"
        return [self.directory / "passthrough", "-f", "-o", options, mountpoint]

    def _mount(self, mountpoint: Path) -> None:
        super()._mount(mountpoint)
        set_read_ahead(device_of(str(mountpoint)), READ_AHEAD_KIB)


class Before(Nfsfuse):
    """Another commit of this project: see `before`."""

    name = "before"
    commit: ClassVar[str]

    @classmethod
    def version(cls) -> str:
        return cls.commit

    def _served_by(self, mountpoint: Path) -> int:
        # Asked of itself: where its registry is, and how it is written, may have changed since. Isolated (-I),
        # as Python would find this checkout first otherwise.
        program = "import sys; from nfsfuse.cli import registry; print(registry.served_by(sys.argv[1]))"
        done = self.run(self.bin / "python", "-I", "-c", program, mountpoint, seconds=COMMAND_SECONDS_MAX)
        return int(done.succeeded().output)


def before(commit: str) -> type[Before]:
    """The system of *commit*, in a checkout of its own, which is made unless it is there. Raises Failed."""
    named = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--short=12", f"{commit}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if named.returncode != 0:
        raise Failed(f"no such commit: {commit}")
    short = named.stdout.strip()
    checkout = CHECKOUTS / short
    if not checkout.exists():
        new = CHECKOUTS / f"{short}.new"
        new.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", short], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "x", "-C", new], input=archive.stdout, check=True)
        new.rename(checkout)
    # Every time: it does nothing if nothing is to do, and goes on where it was interrupted.
    log = CHECKOUTS / f"{short}.log"
    environment = {**os.environ, "PYTHON": os.path.realpath(sys.executable)}  # one interpreter for both
    environment.pop("PYTHONPATH", None)
    with log.open("w") as output:
        done = subprocess.run(
            [checkout / "scripts" / "setup"],
            env=environment,
            stdout=output,
            stderr=output,
            timeout=SETUP_SECONDS_MAX,
        )
    if done.returncode != 0:
        raise Failed(f"{short} cannot be set up: see {log}")
    return type("Before", (Before,), {"commit": short, "bin": checkout / ".venv" / "bin"})
