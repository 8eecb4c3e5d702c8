"""FUSE_INTERRUPT as trio cancellation.

When a signal reaches a thread that waits for a FUSE request, the kernel (fs/fuse/dev.c, request_wait_answer)
sends FUSE_INTERRUPT for it **once** and goes on waiting for the answer, even if the signal was SIGKILL. So
each handler runs in a cancel scope registered under its request's number; the interrupt cancels the scope,
and the request is answered EINTR.

Which signals count is the filesystem's choice. SETLKW gives way to any signal, as POSIX says of F_SETLKW.
All else gives way to a *fatal* one only, as NFS does (TASK_KILLABLE): programs do not expect EINTR from
stat(2) or from read(2) of a file, and interrupts also come of timers, of stop signals, of Go's and Java's
preemption signals. The message does not say which signal it was, so the thread is looked at
(`nfsfuse.fuse.upcalls.requesters`). As no second interrupt would tell of a later SIGKILL, it is looked at
again until its request is answered.

A FLUSH of a thread that is exiting is not interrupted at all: the kernel has taken the signal off. So whoever
waits for one longer than a round trip is looked at as well.

Nothing waits for a look. The thread may hold what the look needs, and goes on only when it is answered: then
its request takes as long as if it had not been interrupted.
"""

from __future__ import annotations

import errno
import functools
import math
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

import trio

from nfsfuse.fuse.binding.libraries import Request, current_request, pyfuse3
from nfsfuse.fuse.upcalls.requesters import is_dying

LOOK_SECONDS: Final = 0.05
"""From one look at a thread to the next: what a person calls at once."""

FLUSH_SECONDS_MIN: Final = 0.005
"""How long who waits for a FLUSH is not looked at: several round trips, after which most are answered."""

TICK_SECONDS: Final = 0.01
"""How often it is seen who is to be looked at."""

DYING_SECONDS: Final = 0.5
"""How long a thread that was seen dying is taken for it, from its last FLUSH: one with many files has them all
flushed, one after the other. No thread number is used again so soon (the kernel goes through all of them
first)."""

LOOKS_MAX: Final = 16
"""Looks at a time, each in a thread of its own. A look that waits for who waits for us keeps its thread until
then; if all do, those that are killed meanwhile end when they are answered."""

EARLY_MAX: Final = 1024
"""Interrupts remembered that no handler has claimed. Nearly all are for requests just answered."""

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


class _Watched(NamedTuple):
    due: float
    interrupted: bool


class Interrupts:
    """The handlers that run, by the number of their request. The kernel uses no number twice."""

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self._early: dict[int, None] = {}  # in order of arrival
        self._watched: dict[int, _Watched] = {}
        self._watch_wanted = trio.Event()
        self._looked_at: set[int] = set()  # threads
        self._dying: tuple[int, float] = (0, 0.0)  # the thread seen last, and until when that is believed
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
        self._watched.pop(unique, None)

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
        elif running.any_signal or running.thread_id == 0:  # there is nothing to look at: see `_look`
            running.scope.cancel()
        else:
            self._watched[unique] = _Watched(-math.inf, interrupted=True)
            self._watch_wanted.set()

    def flushes(self, unique: int) -> None:
        """Request *unique*, which is registered, is a FLUSH that is not answered at once: its thread may be
        dying."""
        thread_id, until = self._dying
        now = trio.current_time()
        running = self._running[unique]
        if running.thread_id == thread_id and now < until:
            self._dying = (thread_id, now + DYING_SECONDS)
            running.scope.cancel()
        else:
            if not self._watched:
                self._watch_wanted.set()  # else the next tick is early enough
            self._watched[unique] = _Watched(now + FLUSH_SECONDS_MIN, interrupted=False)

    async def watch(self) -> None:
        """Run for ever: cancel the handlers whose thread has been killed."""
        limiter = trio.CapacityLimiter(LOOKS_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                await self._watch_wanted.wait()
                self._watch_wanted = trio.Event()
                while self._watched:
                    now = trio.current_time()
                    for unique, watched in list(self._watched.items()):
                        thread_id = self._running[unique].thread_id
                        if now >= watched.due and thread_id not in self._looked_at:
                            self._watched[unique] = watched._replace(due=now + LOOK_SECONDS)
                            self._looked_at.add(thread_id)
                            nursery.start_soon(self._look, thread_id, limiter)
                    with trio.move_on_after(TICK_SECONDS):
                        await self._watch_wanted.wait()
                        self._watch_wanted = trio.Event()

    async def _look(self, thread_id: int, limiter: trio.CapacityLimiter) -> None:
        """Nobody waits for it: it may not return before the thread has had its answer. Where nothing can be
        seen, who was interrupted is taken for killed: a needless EINTR is better than a program that cannot be
        killed. But an end that waits for its FLUSHes is better than a close that does not."""
        dying = await trio.to_thread.run_sync(is_dying, thread_id, limiter=limiter, abandon_on_cancel=True)
        self._looked_at.discard(thread_id)
        if dying:
            self._dying = (thread_id, trio.current_time() + DYING_SECONDS)
        for unique, watched in list(self._watched.items()):
            running = self._running.get(unique)  # one that answers itself is forgotten with it
            to_end = watched.interrupted if dying is None else dying
            if to_end and running is not None and running.thread_id == thread_id:
                self._watched.pop(unique, None)
                running.scope.cancel()


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
