"""The state directory of an export: what must survive the server's death, used by one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from nfsfuse_server.state.database import Database
from nfsfuse_server.state.interface import StateError
from nfsfuse_server.state.log_file import LogFile


class StateDirectory:
    """Opens what is kept in *path*, an existing directory, and holds it against other processes until
    `close`, or the end of this one. *reclaimable* as in `Database`. Raises StateError."""

    def __init__(self, path: Path, *, reclaimable: bool = True) -> None:
        # Its own file: SQLite closes and locks its as it likes, and a close drops every POSIX lock.
        self._guard = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StateError(
                    f"the state directory {path} is in use by another nfsfuse-server: one export has one server"
                ) from exc
            try:
                self.registry = Database(path / "sessions.sqlite", reclaimable=reclaimable)
                self.log = LogFile(path / "journal")
            except OSError as exc:
                raise StateError(f"cannot use the state directory {path}: {exc}") from exc
        except BaseException:
            os.close(self._guard)
            raise

    def close(self) -> None:
        """Release everything."""
        self.log.close()
        self.registry.close()
        os.close(self._guard)


def boot_id() -> str:
    """The kernel's id of this boot of the machine; empty where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return ""
