"""State in memory: it outlives the service, as a state directory does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from nfsfuse.protocol.types import Epoch, SessionId
from nfsfuse_server.state.interface import OVERHEAD, KnownSession, Log, Registry, Start

LOG_SIZE: Final = 1 << 20
"""Bytes of a new log."""


class MemoryRegistry(Registry):
    """A registry in memory."""

    def __init__(self) -> None:
        self._epoch = 0
        self._granted_epoch = 0
        self._boot_id = ""
        self._lease_seconds = 0.0  # this epoch's
        self._lease_seconds_longest = 0.0
        self._sessions: dict[SessionId, KnownSession] = {}

    def start(self, boot_id: str, lease_seconds: float) -> Start:
        rebooted = bool(self._boot_id and boot_id) and self._boot_id != boot_id
        self._epoch += 1
        self._boot_id = boot_id
        granted_epoch = Epoch(self._granted_epoch)
        self._lease_seconds = lease_seconds
        self._lease_seconds_longest = max(self._lease_seconds_longest, lease_seconds)
        if not self._sessions:
            self.granting()
        sessions = tuple(self._sessions.values())
        return Start(Epoch(self._epoch), sessions, rebooted, granted_epoch, self._lease_seconds_longest)

    def granting(self) -> None:
        self._granted_epoch = self._epoch
        self._lease_seconds_longest = self._lease_seconds

    def add(self, session: KnownSession) -> None:
        assert session.id not in self._sessions
        self._sessions[session.id] = session

    def remove(self, sessions: Iterable[SessionId]) -> None:
        for number in sessions:
            self._sessions.pop(number, None)

    def waited(self, sessions: Mapping[SessionId, float]) -> None:
        for number, seconds in sessions.items():
            if number in self._sessions:
                self._sessions[number] = replace(self._sessions[number], waited_seconds=seconds)


class MemoryLog(Log):
    """A log in memory of *size* bytes."""

    def __init__(self, size: int = LOG_SIZE) -> None:
        self.records: list[bytes] = []
        self._size_new = size
        self._room = 0

    def read(self) -> list[bytes]:
        return list(self.records)

    def append(self, record: bytes) -> None:
        if len(record) + OVERHEAD > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.records.append(record)
        self._room -= len(record) + OVERHEAD

    def room(self) -> int:
        return self._room

    def replace(self, records: Iterable[bytes], reserve: int) -> None:
        self.records = list(records)
        self._room = self._size_new + reserve
