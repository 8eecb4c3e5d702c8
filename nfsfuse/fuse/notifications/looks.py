"""Having the kernel ask for a name again without its directory's lock, whoever has that.

FUSE_NOTIFY_INVAL_ENTRY takes the lock, and FUSE_NOTIFY_INC_EPOCH does more than is wanted: each directory that
is used after it is dropped, with what is mounted below it and the working directories in it (d_invalidate() in
fs/dcache.c). But a look with LOOKUP_REVAL believes no name, takes no lock to ask for it, and takes from the
answer how long to believe it (fuse_dentry_revalidate() in fs/fuse/dir.c). A call is made once more with
LOOKUP_REVAL when something in it fails with ESTALE. So a thread of the daemon opens the name (O_PATH):

1. The kernel was told to forget the directory's attributes, so it asks for them, to see whether the thread may
   look into it (fuse_permission(), with default_permissions). It is told ESTALE.
2. It begins anew, and asks again. It is told what it has: nothing changes by that.
3. It asks for the name. It is told what it has, to be believed for no time. Or that there is nothing, where it
   is to drop the name: one that leads nowhere it drops anyway. Then it has dropped it, and looks it up, for
   which the thread has to wait for the lock. Nobody waits for the thread.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
import threading
import time
from contextlib import ExitStack, suppress
from typing import Final

from nfsfuse.fuse.notifications.believed_sizes import AT_EMPTY_PATH, AT_STATX_DONT_SYNC, STATX_BYTES
from nfsfuse.fuse.notifications.own_mount import Look, OwnMount, checked, libc
from nfsfuse.protocol.types import Attributes

log = logging.getLogger(__name__)

STATX_BASIC_STATS: Final = 0x7FF

_STATX: Final = struct.Struct("=16xIIIH2xQQQ8xqI4x16xqI4xqI4xII")
"""struct statx: links, uid, gid, mode, inode, size, blocks; atime, ctime, mtime; the device's numbers."""

LOOK_SECONDS_MAX: Final = 0.2
"""A look takes some 200 us."""

POLL_SECONDS: Final = 0.00005


def look_again(mount: OwnMount, look: Look) -> bool:
    """Do it; whether the kernel believes *name* no more. To be run in a thread. Raises OSError: the daemon may
    not open directories of its own mount."""
    threading.Thread(target=_look, args=(mount, look), name="look", daemon=True).start()
    end = time.monotonic() + LOOK_SECONDS_MAX
    while not look.over.wait(POLL_SECONDS):
        if look.asked_again and _is_blocked(look.thread):
            return True
        if time.monotonic() > end:
            log.warning("a look at %r in directory %d takes too long", look.name, look.parent)
            return False
    if look.refused:
        raise OSError(look.refused, os.strerror(look.refused))
    return look.asked_again or look.of_parent is None


def _look(mount: OwnMount, look: Look) -> None:
    try:
        _walk(mount, look)
    except OSError as exc:
        if exc.errno != errno.ESTALE:  # else the kernel does not know the directory, and so no name in it
            look.refused = exc.errno or errno.EIO
    finally:
        look.over.set()


def _walk(mount: OwnMount, look: Look) -> None:
    look.thread = threading.get_native_id()
    with ExitStack() as stack:
        parent = stack.enter_context(mount.opened(look.parent, look.parent_generation, os.O_PATH))
        if look.child is not None and look.attributes is None:
            try:
                child = stack.enter_context(mount.opened_besides(*look.child, os.O_PATH | os.O_NOFOLLOW))
            except OSError as exc:
                if exc.errno != errno.ESTALE:
                    raise
                look.child = None  # the kernel does not know it, and so no name of it
            else:
                look.descriptor = child
        look.of_parent = believed(parent)
        mount.looks[look.thread] = look
        try:
            # Not to be followed into what is mounted there any further than to its root, which asks nothing.
            with suppress(OSError):
                os.close(os.open(look.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent))
        finally:
            del mount.looks[look.thread]


def believed(descriptor: int) -> Attributes:
    """The attributes as the kernel has them, which it tells at once. Raises OSError."""
    buffer = ctypes.create_string_buffer(STATX_BYTES)
    flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    checked(libc.statx(descriptor, b"", flags, STATX_BASIC_STATS, buffer))
    nlink, uid, gid, mode, ino, size, blocks, *times, major, minor = _STATX.unpack_from(buffer.raw)
    atime, ctime, mtime = (s * 1_000_000_000 + ns for s, ns in zip(times[::2], times[1::2], strict=True))
    return Attributes(
        ino=ino, mode=mode, nlink=nlink, uid=uid, gid=gid, rdev=os.makedev(major, minor), size=size,
        blocks=blocks, atime_ns=atime, mtime_ns=mtime, ctime_ns=ctime, btime_ns=0,
    )  # fmt: skip


def _is_blocked(thread: int) -> bool:
    """Whether a thread of ours waits in the kernel, and for no answer of ours: for a lock, as it has dropped
    the name. (What it waits for when it runs, or is about to, is "0": get_wchan() in kernel/sched/core.c.)"""
    try:
        with open(f"/proc/self/task/{thread}/wchan", encoding="ascii") as file:
            waits_in = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it is over
    return waits_in not in ("", "0") and "fuse" not in waits_in and "request_wait" not in waits_in
