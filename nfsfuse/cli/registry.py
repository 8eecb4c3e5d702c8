"""Which process serves which mount, and in which session with which server: one small file a mount.

So umount can wait for the daemon, and a mount that replaces one whose daemon has died can tell the server.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from nfsfuse.cli.mounts import canonical
from nfsfuse.protocol.types import SessionId


def _directory() -> Path:
    if os.geteuid() == 0:
        return Path("/run/nfsfuse")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "nfsfuse"


def _file(mountpoint: str) -> Path:
    return _directory() / (canonical(mountpoint).strip("/").replace("/", "\\") + ".pid")


def register(mountpoint: str, server: str, session_id: SessionId) -> None:
    """This process serves *mountpoint*, in this session with *server*."""
    path = _file(mountpoint)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)  # whoever knows the session can end it
    new.write_text(f"{os.getpid()}\n{server}\n{session_id.hex()}\n")
    new.replace(path)


def unregister(mountpoint: str) -> None:
    """This process does not serve *mountpoint* any more."""
    path = _file(mountpoint)
    if served_by(mountpoint) == os.getpid():
        path.unlink(missing_ok=True)


def served_by(mountpoint: str) -> int | None:
    """The process that serves *mountpoint*, None if that is not known."""
    try:
        return int(_file(mountpoint).read_text().partition("\n")[0])
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def _lives(pid: int) -> bool:
    """Whether there is a process *pid* that has not ended (a zombie has)."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(process)


def session_of_the_dead(mountpoint: str, server: str) -> SessionId | None:
    """The session that a daemon which is dead had with *server* for *mountpoint*; None if there is no such."""
    pid = served_by(mountpoint)
    if pid is None or _lives(pid):
        return None
    try:
        _, named, session_id = _file(mountpoint).read_text().splitlines()
        return SessionId(bytes.fromhex(session_id)) if named == server else None
    except (FileNotFoundError, ValueError):
        return None
