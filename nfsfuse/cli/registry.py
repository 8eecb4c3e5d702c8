"""Which process serves which mount: one small file a mount, so that umount can wait for its daemon."""

from __future__ import annotations

import os
from pathlib import Path

from nfsfuse.cli.mounts import canonical


def _directory() -> Path:
    if os.geteuid() == 0:
        return Path("/run/nfsfuse")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "nfsfuse"


def _file(mountpoint: str) -> Path:
    return _directory() / (canonical(mountpoint).strip("/").replace("/", "\\") + ".pid")


def register(mountpoint: str) -> None:
    """This process serves *mountpoint*."""
    path = _file(mountpoint)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_text(f"{os.getpid()}\n")


def unregister(mountpoint: str) -> None:
    """This process does not serve *mountpoint* any more."""
    path = _file(mountpoint)
    if served_by(mountpoint) == os.getpid():
        path.unlink(missing_ok=True)


def served_by(mountpoint: str) -> int | None:
    """The process that serves *mountpoint*, None if that is not known."""
    try:
        return int(_file(mountpoint).read_text())
    except (FileNotFoundError, ValueError):
        return None
