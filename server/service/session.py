"""A client's session on the server: its connection, its open files, its requests under way."""

from __future__ import annotations

import errno
import itertools
from dataclasses import dataclass, field

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import ClientId, InodeHandle, OpenId, RequestId, SessionId
from nfsfuse.rpc.channel import Channel


@dataclass(slots=True, eq=False)
class Session:
    """What one client holds. An open file pins its inode, for as long as the session lasts."""

    id: SessionId
    client_id: ClientId
    client_name: str
    channel: Channel
    open_files: dict[OpenId, InodeHandle] = field(default_factory=dict)
    running: dict[RequestId, trio.CancelScope] = field(default_factory=dict)
    _open_ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def opened(self, handle: InodeHandle) -> OpenId:
        """Number a file that was opened and pinned."""
        open_id = OpenId(next(self._open_ids))
        self.open_files[open_id] = handle
        return open_id

    def released(self, open_id: OpenId) -> InodeHandle:
        """Forget an open file; its inode, to be unpinned. EBADF if there is no such."""
        handle = self.open_files.pop(open_id, None)
        if handle is None:
            raise FsError(errno.EBADF, f"open file {open_id} of {self.client_name}")
        return handle

    def cancel(self, request: RequestId) -> None:
        """Give up on a request that is still waiting; one that is answered already stays so."""
        scope = self.running.get(request)
        if scope is not None:
            scope.cancel()

    def __str__(self) -> str:
        return f"{self.client_name} (session {self.id.hex()[:8]})"
