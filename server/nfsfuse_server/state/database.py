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

from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.types import ClientId, Epoch, SessionId
from nfsfuse_server.state.interface import KnownSession, Registry, Start, StateError

SCHEMA_VERSION: Final = 4
"""Kept in the database's ``user_version``; 0 is an empty one. It is the version of the whole state directory,
and looked at before anything there is changed."""

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

_VERSION_4: Final = """
ALTER TABLE server ADD COLUMN protocol INTEGER NOT NULL DEFAULT 1;
"""
"""What it has more than version 3: which version of the protocol the sessions speak. Before that it was the
first."""

_UPGRADES: Final = {1: _VERSION_2, 2: _VERSION_3, 3: _VERSION_4}
"""From each version to the next."""

_SCHEMA: Final = f"""
CREATE TABLE server (epoch INTEGER NOT NULL, boot_id TEXT NOT NULL);
INSERT INTO server VALUES (0, '');
CREATE TABLE sessions (
    id BLOB PRIMARY KEY, client_id BLOB NOT NULL, client_name TEXT NOT NULL, epoch INTEGER NOT NULL
) WITHOUT ROWID;
{_VERSION_2}
{_VERSION_3}
{_VERSION_4}
"""

CLIENTS_NAMED_MAX: Final = 5
"""In a sentence for people."""

_GRANTING: Final = "UPDATE server SET granted_epoch = epoch, longest_lease_seconds = lease_seconds"


class Database(Registry):
    """The registry in the file *path*. Unless sessions are *reclaimable* they end with each server, and it does
    not matter what they speak. StateError, with nothing changed, if it is a later server's, or clients of
    another protocol version may hold something: they could never come back, and would lose what they hold."""

    def __init__(self, path: Path, *, reclaimable: bool = True) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            # Any thread may use it: the lock keeps them apart. isolation_level: no implicit transactions.
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA synchronous = FULL")
            try:
                self._prepare(reclaimable)
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as exc:
            raise StateError(f"cannot use {path}: {exc}") from exc

    def _prepare(self, reclaimable: bool) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._run(_SCHEMA)
            return
        if not 0 < version <= SCHEMA_VERSION:
            raise StateError(
                f"{self._path} is of a later nfsfuse-server (version {version}, this one knows "
                f"{SCHEMA_VERSION}): upgrade this one, or, once all clients are unmounted, choose another "
                "--state-dir"
            )
        if reclaimable:
            self._check_protocol(version)
        if version < SCHEMA_VERSION:
            self._run("".join(_UPGRADES[step] for step in range(version, SCHEMA_VERSION)))

    def _check_protocol(self, version: int) -> None:
        spoken = 1
        if version >= 4:
            (spoken,) = self._connection.execute("SELECT protocol FROM server").fetchone()
        rows = self._connection.execute("SELECT client_name FROM sessions ORDER BY epoch, id")
        names = [name for (name,) in rows]
        if spoken == PROTOCOL_VERSION or not names:
            return
        shown = ", ".join(names[:CLIENTS_NAMED_MAX]) + (", ..." if len(names) > CLIENTS_NAMED_MAX else "")
        raise StateError(
            f"{len(names)} clients may hold files ({shown}), and speak protocol version {spoken}, this server "
            f"{PROTOCOL_VERSION}: start the nfsfuse-server that they were mounted from, unmount them (those "
            "that are gone it forgets after its grace time), stop it, and then start this one. Nothing has "
            "been changed"
        )

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
                "UPDATE server SET epoch = ?, boot_id = ?, lease_seconds = ?, longest_lease_seconds = ?, "
                "protocol = ?",
                (epoch + 1, boot_id, lease_seconds, longest, PROTOCOL_VERSION),
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
