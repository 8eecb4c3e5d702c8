"""The registry of sessions in a SQLite database: epochs, boots, and who may hold something.

SQLite with ``synchronous=FULL`` in its rollback journal mode: a transaction that has returned is on stable
storage. The few changes there are - a client comes, goes, or is fenced - are worth an fsync each.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nfsfuse.protocol.types import ClientId, Epoch, SessionId
from server.state.interface import KnownSession, Registry, Start, StateError

SCHEMA_VERSION: Final = 3
"""Kept in the database's ``user_version``; 0 is an empty one."""

_VERSION_2: Final = """
ALTER TABLE sessions ADD COLUMN waited_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE server ADD COLUMN granted_epoch INTEGER NOT NULL DEFAULT 0;
UPDATE server SET granted_epoch = epoch;
"""
"""What it has more than version 1. Of that it is not known in which epochs something was granted."""

_VERSION_3: Final = """
ALTER TABLE server ADD COLUMN lease_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE server ADD COLUMN longest_lease_seconds REAL NOT NULL DEFAULT 0;
"""
"""What it has more than version 2: the lease of the epoch, and the longest that a session may have. Of version
2 they are not known: whoever upgrades must not shorten the lease at the same time."""

_SCHEMA: Final = f"""
CREATE TABLE server (epoch INTEGER NOT NULL, boot_id TEXT NOT NULL);
INSERT INTO server VALUES (0, '');
CREATE TABLE sessions (
    id BLOB PRIMARY KEY, client_id BLOB NOT NULL, client_name TEXT NOT NULL, epoch INTEGER NOT NULL
) WITHOUT ROWID;
{_VERSION_2}
{_VERSION_3}
"""

_GRANTING: Final = "UPDATE server SET granted_epoch = epoch, longest_lease_seconds = lease_seconds"


class Database(Registry):
    """The registry in the file *path*."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            # Any thread may use it: the lock keeps them apart. isolation_level: no implicit transactions.
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._prepare()
        except sqlite3.Error as exc:
            raise StateError(f"cannot use {path}: {exc}") from exc

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._run(_SCHEMA)
        elif version == 1:
            self._run(_VERSION_2 + _VERSION_3)
        elif version == 2:
            self._run(_VERSION_3)
        elif version != SCHEMA_VERSION:
            self._connection.close()
            raise StateError(f"{self._path} is of another version of nfsfuse-server ({version})")

    def _run(self, script: str) -> None:
        self._connection.executescript(f"BEGIN; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as exc:
                raise StateError(f"cannot write {self._path}: {exc}") from exc

    def start(self, boot_id: str, lease_seconds: float) -> Start:
        with self._transaction() as connection:
            epoch, last_boot_id, granted_epoch, longest = connection.execute(
                "SELECT epoch, boot_id, granted_epoch, longest_lease_seconds FROM server"
            ).fetchone()
            longest = max(longest, lease_seconds)
            connection.execute(
                "UPDATE server SET epoch = ?, boot_id = ?, lease_seconds = ?, longest_lease_seconds = ?",
                (epoch + 1, boot_id, lease_seconds, longest),
            )
            rows = connection.execute(
                "SELECT id, client_id, client_name, epoch, waited_seconds FROM sessions ORDER BY epoch, id"
            ).fetchall()
            if not rows:
                connection.execute(_GRANTING)
                longest = lease_seconds
        known = tuple(
            KnownSession(SessionId(number), ClientId(client), name, Epoch(opened), waited)
            for number, client, name, opened, waited in rows
        )
        rebooted = bool(last_boot_id and boot_id) and last_boot_id != boot_id
        return Start(Epoch(epoch + 1), known, rebooted, Epoch(granted_epoch), longest)

    def granting(self) -> None:
        with self._transaction() as connection:
            connection.execute(_GRANTING)

    def add(self, session: KnownSession) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
                (session.id, session.client_id, session.client_name, session.epoch, session.waited_seconds),
            )

    def remove(self, sessions: Iterable[SessionId]) -> None:
        with self._transaction() as connection:
            connection.executemany("DELETE FROM sessions WHERE id = ?", [(number,) for number in sessions])

    def waited(self, sessions: Mapping[SessionId, float]) -> None:
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE sessions SET waited_seconds = ? WHERE id = ?",
                [(seconds, number) for number, seconds in sessions.items()],
            )

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._connection.close()
