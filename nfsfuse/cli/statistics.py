"""SIGUSR1: the daemon logs what it has done so far, as one line of JSON."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.session import Session

if TYPE_CHECKING:
    from nfsfuse.fuse.notifications.kernel import FuseKernel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counted:
    """Whatever of a mount counts something. *upcalls*: requests of the kernel by operation."""

    session: Session
    filesystem: Filesystem
    kernel: FuseKernel
    upcalls: Mapping[str, int]

    def line(self) -> str:
        """The counts since the mount began; the fields are described in docs/client.md."""
        write_back, cache = self.filesystem.write_back, self.filesystem.cache
        return json.dumps(
            {
                "upcalls": dict(self.upcalls),
                "requests": dict(self.session.requests),
                "writes_sent": write_back.writes_sent,
                "bytes_sent": write_back.bytes_sent,
                "cache_bytes": cache.used_bytes,
                "dirty_bytes": cache.dirty_bytes,
                "evicted_blocks": cache.evicted_blocks,
                "invalidations": self.kernel.invalidations,
                "invalidation_seconds": round(self.kernel.invalidation_seconds, 6),
            }
        )


async def tell_on_signal(
    counted: Counted, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Log the counts at each SIGUSR1, until cancelled."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            log.info("statistics: %s", counted.line())
