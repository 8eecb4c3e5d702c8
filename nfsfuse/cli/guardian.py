"""A process that lets go of a mount whose daemon was killed while the kernel was busy for it.

A thread of the daemon that tells the kernel to drop pages or a name may wait in the kernel for the lock of a
page or a directory, and so for a request that only the daemon could have answered. A killed process does not
end before all its threads have, and that one cannot: /dev/fuse stays open, the kernel does not learn that
nobody will answer, and every program in the mount waits for ever and cannot be killed. (Seen: some 12 kills
under load are enough.) Aborting the connection in /sys/fs/fuse/connections frees them all, and leaves a dead
mount (ENOTCONN) as every other death does.

So a mount has a second process, which sleeps until the daemon's main thread dies (PR_SET_PDEATHSIG of prctl(2),
which asks for the thread and not for the process), and aborts the connection if the process is not gone then.

It wakes once a second to see whether the daemon's event loop turns (`nfsfuse.machines.watchdog`): it may wait
for a program that waits for it, by a way that nobody has thought of, or be busy for ever. The loop counts in
memory that both share. Of one that does not turn the guardian logs where its threads are: a signal has
faulthandler write that, in a thread that is there for it, as the main thread may have Python's lock and be
where no signal reaches it. In the end the connection is aborted.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import mmap
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nfsfuse.machines.watchdog import LOOK_SECONDS, Do, Watchdog

log = logging.getLogger(__name__)

CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

END_SECONDS_MAX: Final = 0.5
"""From the death of the daemon's main thread to the end of the process, if nothing holds it up: it has memory
to give back. Aborting too early does no harm, as the mount is dead anyway."""

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_DEATH: Final = signal.SIGUSR2  # of the guardian

_STACKS: Final = signal.SIGUSR2  # of the daemon

STACKS_SECONDS_MAX: Final = 2.0
"""For a thread of the daemon to write where all of them are: it has nothing to wait for but a processor."""

STACKS_PAUSE_SECONDS: Final = 0.1
"""It is done if it writes no more in this time."""


class Guardian:
    """The daemon's end. Made by its main thread, before it has any other, and before the device is opened,
    which the guardian must not have. *set_up_log* opens the log anew there. *abort_seconds*: how long the event
    loop may not turn; None: for ever."""

    def __init__(self, set_up_log: Callable[[], None], abort_seconds: float | None) -> None:
        self._line, line = socket.socketpair()
        self._beats = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        stacks = os.memfd_create("stacks")
        daemon = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _guard(daemon, line, set_up_log, self._beats, stacks, Watchdog(abort_seconds))
            finally:
                os._exit(0)
        line.close()
        _write_stacks_on_signal(stacks)
        # Only now: whose main thread dies before it has asked for it, nobody is told of.
        self._line.recv(1)

    def guard(self, connection: int) -> None:
        """The mount is there: its number under /sys/fs/fuse/connections. From now on `beat` is to be called."""
        self._line.send(b"%d" % connection)

    def beat(self) -> None:
        """The event loop turns; to be said every `BEAT_SECONDS`."""
        self._beats[0] += 1

    def end(self) -> None:
        """The daemon comes to its end in order."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._line.close()


def _write_stacks_on_signal(stacks: int) -> None:
    """Have one thread take `_STACKS`, which writes where all of them are."""
    faulthandler.register(_STACKS, stacks, all_threads=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [_STACKS])  # here, and in all threads that are begun later

    def take_signals() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [_STACKS])
        while True:
            signal.pause()

    threading.Thread(target=take_signals, name="stacks", daemon=True).start()


def _guard(
    daemon: int,
    line: socket.socket,
    set_up_log: Callable[[], None],
    beats: memoryview,
    stacks: int,
    watchdog: Watchdog,
) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [_DEATH])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, they are for the daemon
    for handler in logging.getLogger().handlers[:]:  # or its end would close what has its number by then
        logging.getLogger().removeHandler(handler)
        handler.close()
    process = os.pidfd_open(daemon)
    kept = sorted((line.fileno(), process, stacks))
    for low, high in zip([3, *(n + 1 for n in kept)], [*kept, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low, high)
    set_up_log()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(_DEATH), 0, 0, 0)
    if os.getppid() != daemon:
        return
    line.send(b"!")
    watch = _Watch(daemon, process, beats, stacks, watchdog)
    connection: int | None = None
    while signal.sigtimedwait([_DEATH], LOOK_SECONDS) is None:
        connection = _connection(line) if connection is None else connection
        if connection is not None:
            watch.look(connection)
    connection = _connection(line) if connection is None else connection
    if connection is None:
        return  # it died before there was a mount
    if not select.select([process], [], [], END_SECONDS_MAX)[0]:
        abort(connection, "the daemon was killed while the kernel was busy for it")


def _connection(line: socket.socket) -> int | None:
    try:
        return int(line.recv(32, socket.MSG_DONTWAIT))
    except (BlockingIOError, ValueError):
        return None


class _Watch:
    """The guardian's look at the event loop."""

    def __init__(
        self, daemon: int, process: int, beats: memoryview, stacks: int, watchdog: Watchdog
    ) -> None:
        self._daemon = daemon
        self._process = process
        self._beats = beats
        self._stacks = stacks
        self._watchdog = watchdog
        self._had = ""

    def look(self, connection: int) -> None:
        watchdog = self._watchdog
        match watchdog.look(time.monotonic(), self._beats[0], could_run=self._could_run()):
            case Do.TELL:
                self._tell()
            case Do.ABORT:
                self._tell()
                abort(connection, f"the daemon's event loop has not turned for {watchdog.seconds:.0f} s")
            case Do.TURNS_AGAIN:
                log.warning("the event loop turns again, after %.0f s", watchdog.stalled_seconds)
            case Do.NOTHING:
                pass

    def _could_run(self) -> bool:
        """Whether the daemon's main thread has run, or has waited for something, since this was asked last: not
        if it is stopped, by a signal or a debugger, nor if it can run and is given no processor. (Of the
        daemon, of which nothing waits for the guardian, `status` waits for nothing: see
        `nfsfuse.fuse.upcalls.requesters`.)"""
        try:
            status = Path(f"/proc/{self._daemon}/status").read_text(errors="replace")
            before, self._had = self._had, Path(f"/proc/{self._daemon}/schedstat").read_text().split()[0]
        except OSError:
            return False  # it is about to end
        state = status.partition("\nState:\t")[2][:1]
        return state not in "Tt" and not (state == "R" and self._had == before)

    def _tell(self) -> None:
        log.warning("the event loop has not turned for %.0f s; its threads:", self._watchdog.seconds)
        before = os.fstat(self._stacks).st_size
        signal.pidfd_send_signal(self._process, _STACKS)
        size = before
        for _ in range(int(STACKS_SECONDS_MAX / STACKS_PAUSE_SECONDS)):
            time.sleep(STACKS_PAUSE_SECONDS)
            last, size = size, os.fstat(self._stacks).st_size
            if before < last == size:  # it has written, and is done
                break
        text = os.pread(self._stacks, size - before, before).decode(errors="replace")
        for row in text.splitlines() or ["(they do not say where they are)"]:
            log.warning("| %s", row)


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
