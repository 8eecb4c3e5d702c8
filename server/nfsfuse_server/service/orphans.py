"""What a server that died has left in the export although it has no name any more."""

from __future__ import annotations

import logging

from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.driver import Driver
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)


async def sweep_orphans(storage: Storage, driver: Driver, disk: Disk) -> None:
    """Free every orphan that nobody has claimed. For when nobody can any more: once the grace time is over,
    or before anybody is served if there is none.

    An open file that was reclaimed is pinned by its session. A client may also hold tokens on an orphan alone
    (it opened the file under them, see `Tokens`): that is pinned here, as it was when it lost its name.
    """
    left = storage.orphans()
    for handle in left:
        waiting = driver.pin_if_held(handle)
        if waiting is not None:
            await waiting
    await disk.slow(storage.sweep)
    if left:
        kept = len(storage.orphans())
        log.info("%d unlinked files of an earlier server: %d in use, the others freed", len(left), kept)
