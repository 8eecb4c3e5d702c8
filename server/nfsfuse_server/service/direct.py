"""Changes made directly in the exported directory, recalled as if another client had made them.

The change has happened already, so nobody waits: the tokens are taken from whoever holds them, and what a
client has not written back goes on top of the change when its token is recalled.
"""

from __future__ import annotations

import logging
from typing import Final, assert_never

import trio

from nfsfuse.protocol.tokens import Resource, name_point
from nfsfuse_server.service.tokens import Tokens
from nfsfuse_server.watch.interface import (
    AttributesChanged,
    ContentChanged,
    NameChanged,
    Overflow,
    Watcher,
)

log = logging.getLogger(__name__)

RECALLS_AT_ONCE_MAX: Final = 1000
"""Recalls sent in a row after an overflow: some 10 ms of the event loop."""


class DirectChanges:
    """Feeds a watcher's changes to the token manager. *recalled* counts those that concerned anybody."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.recalled = 0

    async def follow(self, watcher: Watcher) -> None:
        """Does so until cancelled, or until the watcher fails: then the log says that changes are not noticed
        any more, and the service goes on without."""
        while True:
            try:
                changes = await watcher.changes()
            except OSError as exc:
                log.error("what other programs change in the export is not noticed any more: %s", exc)
                await self._recall_everything()
                return
            for change in changes:
                if isinstance(change, Overflow):
                    log.warning("more changes on the server than its kernel queues: everything is recalled")
                    await self._recall_everything()
                elif self._apply(change):
                    self.recalled += 1
                    log.debug("changed on the server: %s", change)

    def _apply(self, change: NameChanged | AttributesChanged | ContentChanged) -> bool:
        """Recall what *change* concerns; whether anybody held it."""
        recall = self._tokens.changed_directly
        match change:
            case NameChanged(directory, name):
                point = name_point(name)
                named = recall(directory, Resource.DIR, point, point + 1)
                return recall(directory, Resource.ATTR) or named
            case AttributesChanged(handle):
                return recall(handle, Resource.ATTR)
            case ContentChanged(handle):
                data = recall(handle, Resource.DATA)
                return recall(handle, Resource.ATTR) or data
            case _:
                assert_never(change)

    async def _recall_everything(self) -> None:
        for number, (handle, resource) in enumerate(self._tokens.manager.held(), start=1):
            self._tokens.changed_directly(handle, resource)
            if number % RECALLS_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()
