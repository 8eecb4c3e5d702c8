"""Changes of names, also for programs that are killed while they wait.

The server makes a change although nobody waits for it any more: it was asked before it could be told. But the
kernel of a killed program has not made it in what it believes of names. It drops those that it was about to
remove (`fuse_unlink` and others, at EINTR), and goes on to believe that there is nothing where something was
made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.name_drops import NameDrops
from nfsfuse.machines.directory_cache import UNKNOWN
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol.messages import Message, Request

R = TypeVar("R", bound=Message)


class NameChanges:
    """Those of a mount. What nobody waits for is done in *nursery*, once there is one."""

    def __init__(self, remote: Remote, name_drops: NameDrops) -> None:
        self._remote = remote
        self._name_drops = name_drops
        self.nursery: trio.Nursery | None = None

    async def ask(
        self,
        message: Request[R],
        apply: Callable[[Message, bytes | bytearray], None],
        *places: tuple[CachedDirectory, bytes],
        unwanted: Callable[[], None] | None = None,
    ) -> R:
        """Ask for a change of the names *places*; the reply, which *apply* is run with when it arrives. If
        nobody waits for it by then *unwanted* is run after that. Raises FsError."""
        killed = False

        def made(reply: Message, payload: bytes | bytearray) -> None:
            apply(reply, payload)
            if killed:
                if unwanted is not None:
                    unwanted()
                self._distrust(places)

        try:
            reply, _ = await self._remote.call(message, b"", made)
        except trio.Cancelled:
            killed = True
            self._distrust(places)
            raise
        return reply

    def _distrust(self, places: Iterable[tuple[CachedDirectory, bytes]]) -> None:
        for directory, name in places:
            leads_to = directory.cache.stood_for(name)
            directory.cache.changed(name, UNKNOWN)  # perhaps, by now: only the server can tell
            if self.nursery is not None:  # else the mount has ended, and with it everything that waited
                self.nursery.start_soon(self._name_drops.drop_what_led_to, directory, name, leads_to)
