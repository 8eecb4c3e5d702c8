"""FUSE_INTERRUPT as trio cancellation.

When a signal reaches a thread that waits for a FUSE request, the kernel (fs/fuse/dev.c, request_wait_answer)
sends FUSE_INTERRUPT for it **once** and goes on waiting for the answer, even if the signal was SIGKILL. So
each handler runs in a cancel scope registered under its request's number; the interrupt cancels the scope,
and the request is answered EINTR.

Which signals count is the filesystem's choice. SETLKW gives way to any signal, as POSIX says of F_SETLKW.
All else gives way to a *fatal* one only, as NFS does (TASK_KILLABLE): programs do not expect EINTR from
stat(2) or from read(2) of a file, and interrupts also come of timers, of stop signals, of Go's and Java's
preemption signals. The message does not say which signal it was; a fatal one is seen as SIGKILL pending in
the thread, because the kernel turns every fatal signal into that (kernel/signal.c, complete_signal). As no
second interrupt would tell of a later SIGKILL, an interrupted thread is looked at again until its request is
answered.
"""

from __future__ import annotations

import errno
import functools
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

import trio

from nfsfuse.fuse.binding import Request, current_request, pyfuse3

FATAL_CHECK_SECONDS: Final = 0.05
"""How often an interrupted thread is looked at for a fatal signal: what a person calls at once."""

EARLY_MAX: Final = 1024
"""Interrupts remembered that no handler has claimed. Nearly all are for requests just answered."""

_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Cancellable(Protocol):
    """What an interrupt ends: a trio.CancelScope, or what answers its request itself then."""

    def cancel(self) -> None: ...


class _Running(NamedTuple):
    scope: Cancellable
    thread_id: int
    any_signal: bool


class Interrupts:
    """The handlers that run, by the number of their request. The kernel uses no number twice."""

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self._early: dict[int, None] = {}  # in order of arrival
        self._watched: set[int] = set()
        self._watch_wanted = trio.Event()
        self._failing = False

    def fail(self, failing: bool) -> None:
        """*failing*: whoever waits now or is about to wait is told EIO (a soft mount without its server)."""
        self._failing = failing
        if failing:
            for running in list(self._running.values()):  # one that answers itself is forgotten with it
                running.scope.cancel()

    @property
    def errno(self) -> int:
        """What whoever was cancelled is to be told."""
        return errno.EIO if self._failing else errno.EINTR

    def register(self, unique: int, thread_id: int, *, any_signal: bool = False) -> trio.CancelScope:
        """The scope to run the handler of request *unique* in; `forget` it at the end."""
        scope = trio.CancelScope()
        self.enlist(unique, thread_id, scope, any_signal=any_signal)
        return scope

    def enlist(
        self, unique: int, thread_id: int, scope: Cancellable, *, any_signal: bool = False
    ) -> None:
        """As `register`, of what waits without a task. It may be cancelled here."""
        self._running[unique] = _Running(scope, thread_id, any_signal)
        if self._failing:
            scope.cancel()
        elif self._early and unique in self._early:
            del self._early[unique]
            self.interrupt(unique)

    def forget(self, unique: int) -> None:
        del self._running[unique]
        self._watched.discard(unique)

    def interrupt(self, unique: int) -> None:
        """FUSE_INTERRUPT for *unique* was received.

        It may come before the handler has registered: then it counts when it does. Answering EAGAIN, which
        makes the kernel send the interrupt again at once, would be a busy loop for a handler that never
        registers.
        """
        running = self._running.get(unique)
        if running is None:
            self._early[unique] = None
            if len(self._early) > EARLY_MAX:
                del self._early[next(iter(self._early))]
        elif running.any_signal or fatal_signal_pending(running.thread_id):
            running.scope.cancel()
        else:
            self._watched.add(unique)
            self._watch_wanted.set()

    async def watch(self) -> None:
        """Run for ever: cancel interrupted handlers whose thread has been killed since."""
        while True:
            await self._watch_wanted.wait()
            self._watch_wanted = trio.Event()
            while self._watched:
                await trio.sleep(FATAL_CHECK_SECONDS)
                for unique in list(self._watched):
                    running = self._running[unique]
                    if fatal_signal_pending(running.thread_id):
                        running.scope.cancel()
                        self._watched.discard(unique)


def fatal_signal_pending(thread_id: int) -> bool:
    """Is the thread, waiting in the kernel, to die? True too for one that cannot be looked at (another pid
    namespace): then a needless EINTR is better than a program that cannot be killed."""
    if thread_id == 0:
        return True
    try:
        with open(f"/proc/{thread_id}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("SigPnd:"):
                    return bool(int(line.split()[1], 16) & _SIGKILL_BIT)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return True
    return True


_EXIT_CODE_FIELD: Final = 52  # of /proc/PID/stat, counted from 1: proc_pid_stat(5)


def died_of_signal(thread_id: int) -> bool:
    """Is the thread on its way out because a signal killed it? The FLUSHes of its open files then cannot be
    interrupted any more (the kernel has taken the signal off), yet nobody sees what they return. False for
    one that cannot be looked at: then its end waits for them."""
    try:
        with open(f"/proc/{thread_id}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return int(fields[_EXIT_CODE_FIELD - 3]) & 0x7F != 0  # as wait(2) has it


INTERRUPTS: Final = Interrupts()
"""Of this process's one mount, as in pyfuse3: `interruptible` is applied before there is a mount."""


class waiting:  # noqa: N801 - a context manager, and one of every request that waits
    """While the body waits on behalf of *request*, its program can be killed: FUSEError(EINTR) then.

    For handlers that mostly answer at once: only what waits is put into the body, for entering and leaving
    costs 6 to 15 us, most of it trio's cancel scope, where a whole upcall can be had for 30. An interrupt
    that came before counts.
    """

    __slots__ = ("_scope", "_unique")

    def __init__(self, request: Request) -> None:
        self._unique = request.unique
        self._scope = INTERRUPTS.register(request.unique, request.pid)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        INTERRUPTS.forget(self._unique)
        if self._scope.__exit__(kind, value, trace) and value is not None:  # it was the scope's cancellation
            raise pyfuse3.FUSEError(INTERRUPTS.errno)


def interruptible(
    handler: Callable[Concatenate[S, Request, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a whole method of `pyfuse3.Operations` killable and tell it the facts of its request.

    The method is written with the `Request` as its first argument, before pyfuse3's own. The decorator must
    be the outermost one: the facts are those of the message read last, until the first ``await``. Where the
    handler must not be cut off (a change has been sent to the server), it shields that part itself.
    """

    @functools.wraps(handler)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        request = current_request()
        with waiting(request):
            return await handler(self, request, *args, **kwargs)

    return wrapper
