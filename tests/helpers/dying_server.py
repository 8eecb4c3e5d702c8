"""A server that handles one request after the other and can be made to die in the middle of one.

What survives it - the storage, the log - is handed to the next. Nothing waits here, and nothing is concurrent:
the handlers, the driver and the journal are the real ones.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import ClientId, Epoch, RequestId, SessionId
from nfsfuse.rpc.channel import Channel
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.service.calls import Call
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.driver import Driver
from nfsfuse_server.service.growths import Growths
from nfsfuse_server.service.locks import Locks
from nfsfuse_server.service.requests import HANDLERS
from nfsfuse_server.service.session import Session
from nfsfuse_server.service.tokens import Tokens, Waiting
from nfsfuse_server.state.interface import KnownSession
from nfsfuse_server.state.records import Outcome
from nfsfuse_server.state.recover import recover
from nfsfuse_server.storage.interface import Storage
from tests.helpers.memory_state import MemoryLog, MemoryRegistry

T = TypeVar("T")

CHANGING = frozenset({
    "create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename",
    "setattr", "set_flags", "setxattr", "removexattr", "fallocate", "copy_range",
})  # fmt: skip

CLIENT = KnownSession(SessionId(b"session"), ClientId(b"client"), "client", Epoch(1))


class Died(BaseException):
    """The server is dead."""


class _InlineDisk(Disk):
    def quick(self, call: Callable[[], T]) -> T:
        return call()

    def slow(self, call: Callable[[], T]) -> T:  # type: ignore[override]
        return call()


class DyingStorage:
    """*storage*, and the server dies *before* or *after* its next change, or not at all ("")."""

    def __init__(self, storage: Storage, when: str = "") -> None:
        self._storage = storage
        self._when = when

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if name not in CHANGING or not self._when:
            return method

        def dying(*args: Any, **kwargs: Any) -> Any:
            if self._when == "before":
                raise Died
            method(*args, **kwargs)
            raise Died

        return dying


@dataclass(eq=False)
class DyingServer:
    """One process of the server, on what earlier ones have left. It dies in the next change: see
    `DyingStorage`. *rebooted*: its machine was started since."""

    storage: Storage
    log: MemoryLog = field(default_factory=MemoryLog)
    when: str = ""
    rebooted: bool = False

    def __post_init__(self) -> None:
        registry = MemoryRegistry()
        registry.add(CLIENT)
        registry.start("first boot", 10.0)
        boot_id = "second boot" if self.rebooted else "first boot"
        self.journal = recover(self.storage, registry, self.log, boot_id, 10.0).journal
        self.session = Session(CLIENT.id, CLIENT.client_id, CLIENT.client_name)
        self.session.channel = cast(Channel, SimpleNamespace(frames_sent=0))
        self._tokens = Tokens(
            {CLIENT.id: self.session}, self.storage.pin, self.storage.unpin, Leases(lease_seconds=10)
        )
        leases = Leases(10.0)
        growths = Growths({}, self.session.open_counts, leases)
        self._driver = Driver(
            self._tokens, Locks(leases), growths, _InlineDisk(), self.journal, lambda session: 0
        )

    def request(self, number: int, message: Message, payload: bytes = b"") -> Outcome:
        """Handle a request: as asked for the first time, or again."""
        known = self.journal.outcome(CLIENT.id, RequestId(number))
        if known is not None:
            return known
        storage = cast(Storage, DyingStorage(self.storage, self.when))
        call = Call(self.session, message, payload, storage, RequestId(number))
        outcome: Outcome
        try:
            reply = self._driver.advance(call, HANDLERS[type(message)](call))
        except FsError as exc:
            outcome = exc
        else:
            assert not isinstance(reply, Coroutine | Waiting), "nothing waits here"
            outcome = reply[0] if isinstance(reply, tuple) else reply
        self._driver.ended(call, outcome, 1)
        self._tokens.ended(call)
        self.journal.check()
        return outcome

    def left(self) -> MemoryLog:
        """The log as the next process finds it; a copy, so that several can try."""
        return copy.deepcopy(self.log)


def errno_of(outcome: Outcome | None) -> str:
    """The errno's name, "" if it was none."""
    return errno.errorcode[outcome.errno] if isinstance(outcome, FsError) else ""
