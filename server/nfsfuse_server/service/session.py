"""A client's session on the server: its channel, its open files, its requests under way."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import ClientId, InodeHandle, OpenId, RequestId, SessionId
from nfsfuse.rpc.channel import Channel
from nfsfuse_server.machines.open_counts import OpenCounts
from nfsfuse_server.machines.sync_errors import SyncErrors

GRANTS_REMEMBERED_MAX: Final = 4096
"""Inodes: more than a client's requests in flight can be about."""


@record(frozen=True, slots=True)
class Queued:
    """A request that waits for tokens. *give_up* ends that; told whether it is to be answered (EINTR)."""

    give_up: Callable[[bool], None]

    def cancel(self) -> None:
        """Its client gives up on it."""
        self.give_up(True)


@dataclass(slots=True, eq=False)
class Session:
    """What one client holds, over any number of connections. An open file pins its inode, for as long as the
    session lasts. Its requests run in *nursery*."""

    id: SessionId
    client_id: ClientId
    client_name: str
    sync_errors: SyncErrors = field(default_factory=SyncErrors)
    """Of all sessions."""
    open_counts: OpenCounts = field(default_factory=OpenCounts)
    """Of all sessions."""
    channel: Channel = field(init=False)
    nursery: trio.Nursery = field(init=False)
    started: bool = False
    """There is a nursery."""
    over: trio.Event = field(default_factory=trio.Event)
    """The session is about to end: nothing of it is taken in any more."""
    open_files: dict[OpenId, InodeHandle] = field(default_factory=dict)
    running: dict[RequestId, trio.CancelScope | Queued] = field(default_factory=dict)
    granted_in: OrderedDict[InodeHandle, int] = field(default_factory=OrderedDict)
    """In which frame of the session tokens of an inode were last granted, oldest first."""
    granted_in_floor: int = 0
    """Grants in frames up to this one may be missing there."""
    _last_open_id: int = 0

    def opened(self, handle: InodeHandle) -> OpenId:
        """Number a file that was opened and pinned."""
        self._last_open_id += 1
        open_id = OpenId(self._last_open_id)
        self._has_open(open_id, handle)
        return open_id

    def reopened(self, open_id: OpenId, handle: InodeHandle) -> None:
        """A file that was open before the server's restart, and is pinned again, keeps its number."""
        assert open_id not in self.open_files
        self._has_open(open_id, handle)
        self._last_open_id = max(self._last_open_id, open_id)

    def _has_open(self, open_id: OpenId, handle: InodeHandle) -> None:
        self.open_files[open_id] = handle
        self.open_counts.opened(self.id, handle)

    def released(self, open_id: OpenId) -> InodeHandle:
        """Forget an open file; its inode, to be unpinned. EBADF if there is no such."""
        handle = self.open_files.pop(open_id, None)
        if handle is None:
            raise FsError(errno.EBADF, f"open file {open_id} of {self.client_name}")
        self.open_counts.closed(self.id, handle)
        return handle

    def is_watched(self, handle: InodeHandle) -> bool:
        """Whether others have the file open, and have to be told when this session makes it longer."""
        return self.open_counts.is_watched(self.id, handle)

    def granted(self, handle: InodeHandle) -> None:
        """The frame just queued grants tokens of *handle*."""
        self.granted_in[handle] = self.channel.frames_sent
        self.granted_in.move_to_end(handle)
        if len(self.granted_in) > GRANTS_REMEMBERED_MAX:
            _, self.granted_in_floor = self.granted_in.popitem(last=False)

    def knows_of_grants(self, handle: InodeHandle, frames_received: int) -> bool:
        """Whether the client had seen all that it was granted of *handle* when it had received so many
        frames. If in doubt not: then the server believes too much, which is harmless."""
        while self.granted_in and next(iter(self.granted_in.values())) <= frames_received:
            # Who gave something up before that, and says so only now, may not have seen it.
            _, self.granted_in_floor = self.granted_in.popitem(last=False)
        return handle not in self.granted_in and self.granted_in_floor <= frames_received

    def end(self, why: str) -> None:
        """The session is over: its connection is closed, and what it held is released when its requests under
        way have ended."""
        self.channel.end(why)
        self.over.set()

    def cancel(self, request: RequestId) -> None:
        """Give up on a request that is still waiting; one that is answered already stays so."""
        running = self.running.get(request)
        if running is not None:
            running.cancel()

    def has_given_up(self, request: RequestId) -> bool:
        """Whether the client wants to wait no more for a request that is under way."""
        running = self.running.get(request)
        return isinstance(running, trio.CancelScope) and running.cancel_called and not self.over.is_set()

    def give_up_queued(self) -> None:
        """The session is over: its requests that wait for tokens have waited in vain."""
        for running in list(self.running.values()):
            if isinstance(running, Queued):
                running.give_up(False)

    def __str__(self) -> str:
        return f"{self.client_name} (session {self.id.hex()[:8]})"
