"""Files that programs have open, and the server does not know of."""

from __future__ import annotations

import logging

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError

log = logging.getLogger(__name__)


async def open_on_server(file: CachedFile, remote: Remote) -> None:
    """Open *file* on the server, if it is open here and not there: it was opened under tokens alone, or in a
    session that is over. The server then keeps it when it is unlinked (promise 9)."""
    if file.open_count == 0 or file.open_ids:
        return
    try:
        reply, _ = await remote.call(m.Open(file.inode.handle, 0, False))
    except FsError as exc:
        log.error("%s: an open file was lost: %s", file.inode, exc)
        return
    if file.open_count:
        file.open_ids.append(reply.open_id)
    else:
        remote.release(reply.open_id, ())  # it was closed meanwhile
