"""The last release, from the repository's history: its server and its client."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LAST_RELEASE: Final = "45805352d5c544055e49339ac3aea13edef8e91f"
"""Protocol version 1, state version 3, a journal without a version."""

ROOT: Final = Path(__file__).resolve().parents[2]


class Unavailable(Exception):
    """The last release cannot be had; the text says why."""


@dataclass(frozen=True)
class LastRelease:
    """Its programs, unpacked in *directory*."""

    directory: Path

    def program(self, text: str) -> tuple[str | Path, ...]:
        """A command that runs *text* with the release's modules and none of this checkout's."""
        # -P: the working directory, this checkout, is not where modules come from.
        return ("env", f"PYTHONPATH={self.directory}", sys.executable, "-P", "-c", text)

    @property
    def server(self) -> tuple[str | Path, ...]:
        """``nfsfuse-server``."""
        return self.program("from server.cli import main; raise SystemExit(main())")

    def dying_server(self, uid: int) -> tuple[str | Path, ...]:
        """The same, but killed as soon as it would give *uid* a file that is made already."""
        return self.program(
            "import os\n"
            "from server.storage import syscalls\n"
            "chown = syscalls.chown\n"
            "def dying(fd, owner, group):\n"
            f"    if owner == {uid}:\n"
            "        os.kill(os.getpid(), 9)\n"
            "    chown(fd, owner, group)\n"
            "syscalls.chown = dying\n"
            "from server.cli import main; raise SystemExit(main())"
        )

    @property
    def client(self) -> tuple[str | Path, ...]:
        """``nfsfuse``."""
        return self.program("from nfsfuse.cli.main import main; raise SystemExit(main())")


def last_release(directory: Path) -> LastRelease:
    """Unpack it into *directory*, a new one, and compile what has to be."""
    found = subprocess.run(
        ["git", "-C", ROOT, "cat-file", "-e", f"{LAST_RELEASE}^{{commit}}"], capture_output=True, text=True
    )
    if found.returncode != 0:
        raise Unavailable(f"the last release ({LAST_RELEASE[:7]}) is not in this clone: {found.stderr.strip()}")
    directory.mkdir()
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", LAST_RELEASE, "nfsfuse", "server"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
    for source in (directory / "nfsfuse" / "fuse").glob("*.c"):
        _compile(source)
    return LastRelease(directory)


def _compile(source: Path) -> None:
    flags, libraries = (
        subprocess.run(
            ["pkg-config", f"--{what}", "fuse3"], capture_output=True, text=True, check=True
        ).stdout.split()
        for what in ("cflags", "libs")
    )
    target = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    subprocess.run(
        [
            "cc", "-O1", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", *flags,
            source, "-o", target, *libraries,
        ],
        check=True,
    )  # fmt: skip
