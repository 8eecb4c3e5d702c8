"""A process that lets go of a mount whose daemon was killed while the kernel was busy for it.

A thread of the daemon that tells the kernel to drop pages or a name may wait in the kernel for the lock of a
page or a directory, and so for a request that only the daemon could have answered. A killed process does not
end before all its threads have, and that one cannot: /dev/fuse stays open, the kernel does not learn that
nobody will answer, and every program in the mount waits for ever and cannot be killed. (Seen: some 12 kills
under load are enough.) Aborting the connection in /sys/fs/fuse/connections frees them all, and leaves a dead
mount (ENOTCONN) as every other death does.

So a mount has a second process, which sleeps until the daemon's main thread dies (PR_SET_PDEATHSIG of prctl(2),
which asks for the thread and not for the process), and aborts the connection if the process is not gone then.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

END_SECONDS_MAX: Final = 0.5
"""From the death of the daemon's main thread to the end of the process, if nothing holds it up: it has memory
to give back. Aborting too early does no harm, as the mount is dead anyway."""

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_DEATH: Final = signal.SIGUSR2


class Guardian:
    """The daemon's end. Made by its main thread, and before the device is opened, which the guardian must not
    have. *set_up_log* opens the log anew there."""

    def __init__(self, set_up_log: Callable[[], None]) -> None:
        self._line, line = socket.socketpair()
        daemon = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _guard(daemon, line, set_up_log)
            finally:
                os._exit(0)
        line.close()
        # Only now: whose main thread dies before it has asked for it, nobody is told of.
        self._line.recv(1)

    def guard(self, connection: int) -> None:
        """The mount is there: its number under /sys/fs/fuse/connections."""
        self._line.send(b"%d" % connection)

    def end(self) -> None:
        """The daemon comes to its end in order."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._line.close()


def _guard(daemon: int, line: socket.socket, set_up_log: Callable[[], None]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [_DEATH])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, they are for the daemon
    process = os.pidfd_open(daemon)
    kept = sorted((line.fileno(), process))
    for low, high in zip([3, kept[0] + 1, kept[1] + 1], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low, high)
    set_up_log()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(_DEATH), 0, 0, 0)
    if os.getppid() != daemon:
        return
    line.send(b"!")
    signal.sigwait([_DEATH])
    try:
        connection = int(line.recv(32, socket.MSG_DONTWAIT))
    except (BlockingIOError, ValueError):
        return  # it died before there was a mount
    if not select.select([process], [], [], END_SECONDS_MAX)[0]:
        abort(connection, "the daemon was killed while the kernel was busy for it")


def abort(connection: int, why: str) -> None:
    """Free every program that waits in the mount, and every thread of the daemon that waits in the kernel for
    one."""
    try:
        (CONNECTIONS / str(connection) / "abort").write_text("1")
    except OSError as exc:
        log.error(
            "%s, and its mount cannot be aborted (%s): programs in it hang until somebody writes 1 to "
            "%s/%d/abort (mount -t fusectl none %s)",
            why, exc.strerror, CONNECTIONS, connection, CONNECTIONS,
        )  # fmt: skip
    else:
        log.warning("%s: its mount was aborted", why)
