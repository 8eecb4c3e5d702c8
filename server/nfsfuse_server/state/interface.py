"""What the file server asks of the place where its own state is kept, so that it survives the server's death.

Two things are kept. The *registry* says which sessions may hold something: after a restart nothing new is
granted until they have come back (`nfsfuse_server.machines.grace`). The *log* is where the journal
(`nfsfuse_server.state.journal`) writes what must not be done twice. Tokens, locks and open files are kept
nowhere: their holders know them, and reclaim them.

Durability: the registry's changes are on stable storage when a method returns. The log's records survive the
death of this process, not a power failure, as the operations of which they tell survive no more than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final

from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import ClientId, Epoch, SessionId


class StateError(Exception):
    """The state cannot be used; the text says why and what the administrator can do."""


@record(frozen=True, slots=True)
class KnownSession:
    """A session that may hold something. *epoch* is the one that it was opened in. *waited_seconds*: for how
    long servers have waited for it to come back, in all the epochs since it was last there."""

    id: SessionId
    client_id: ClientId
    client_name: str
    epoch: Epoch
    waited_seconds: float = 0.0


@record(frozen=True, slots=True)
class Start:
    """What a start of the server finds. *epoch* is its own, never used before; *sessions* are those that
    earlier ones have left; *rebooted*: the machine was started since, so what was not fsynced may be lost.
    *granted_epoch* is the last before it in which anything was granted. *lease_seconds*: the longest lease that
    any of the sessions may have, or this epoch's."""

    epoch: Epoch
    sessions: tuple[KnownSession, ...]
    rebooted: bool
    granted_epoch: Epoch
    lease_seconds: float


class Registry(ABC):
    """The sessions that may hold something. May block on the disk: not for an event loop. Calls from several
    threads are carried out one after the other."""

    @abstractmethod
    def start(self, boot_id: str, lease_seconds: float) -> Start:
        """Begin a new epoch, on the machine's boot *boot_id* (empty where that is unknown: then nothing is
        said of reboots), with leases of *lease_seconds*. Once, before anything else. If no session is known,
        `granting` is part of it."""

    @abstractmethod
    def granting(self) -> None:
        """From now on something may be granted in this epoch, and who holds anything has a lease of it.
        StateError if that cannot be written."""

    @abstractmethod
    def add(self, session: KnownSession) -> None:
        """*session* may hold something from now on. StateError if that cannot be written."""

    @abstractmethod
    def remove(self, sessions: Iterable[SessionId]) -> None:
        """*sessions* hold nothing any more and cannot reclaim. Those that are not known do not matter.
        StateError if that cannot be written."""

    @abstractmethod
    def waited(self, sessions: Mapping[SessionId, float]) -> None:
        """For how many seconds each of *sessions* has been waited for. Those that are not known do not matter.
        StateError if that cannot be written."""


class Log(ABC):
    """Records in the order written. Short calls: fit for an event loop."""

    @abstractmethod
    def read(self) -> list[bytes]:
        """All records of earlier runs, oldest first. Once, before anything is written."""

    @abstractmethod
    def append(self, record: bytes) -> None:
        """Add *record*; the death of the process does not undo it. OSError (ENOSPC) only where `room` says
        that there is none: then nothing has been written."""

    @abstractmethod
    def room(self) -> int:
        """Bytes of records that can be appended whatever happens to the disk, as if each took `OVERHEAD`
        bytes more than it has."""

    @abstractmethod
    def replace(self, records: Iterable[bytes], reserve: int) -> None:
        """Hold *records* and nothing else, with as much room again as a new log has and *reserve* bytes more:
        all of it or, if the process dies or OSError is raised, none."""


OVERHEAD: Final = 8
"""Bytes that a record takes in a log beyond its own."""
