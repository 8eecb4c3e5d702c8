"""The libfuse supplement: what pyfuse3 lacks, and the only way to mount.

`_supplement.c` says how it works. pyfuse3's own ``init`` fails once that module is loaded, because a mount
without the supplement would have the kernel grant locks locally, unseen by the other clients.
"""

from __future__ import annotations

import os
from typing import Final

import trio

from nfsfuse.fuse.binding.abi import InitFlag, Opcode
from nfsfuse.fuse.binding.init import DECIDED, InitOptions, Negotiated, decode
from nfsfuse.fuse.binding.libraries import SupplementError, _supplement, pyfuse3
from nfsfuse.fuse.binding.loop import NOTHING_QUICK, QuickAnswers, TrioForPyfuse3
from nfsfuse.fuse.notifications.notifier import Notifier
from nfsfuse.fuse.upcalls.dispatcher import Dispatcher, ExtraOperations, implemented
from nfsfuse.fuse.upcalls.interrupt import INTERRUPTS
from nfsfuse.fuse.upcalls.later import Replies

WORKERS_MAX: Final = 32_768
"""Default of pyfuse3's *max_tasks*. A worker is used up by every request that waits, and the write-back that
would end the waiting needs one too; so there are to be more than programs can wait at once. One costs a task
and 1 MiB of address space (memory only once it has carried a large write), and idle ones end."""


class Mount:
    """The mounted filesystem of this process; made by `mount`."""

    def __init__(
        self, options: InitOptions, dispatcher: Dispatcher, replies: Replies, init_done: trio.Event
    ) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._replies = replies
        self._init_done = init_done
        self.notifier = Notifier(replies.device)

    async def serve(
        self,
        *,
        max_tasks: int = WORKERS_MAX,
        task_status: trio.TaskStatus[Negotiated] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer requests until the filesystem is unmounted. Started once FUSE_INIT is through
        (``negotiated = await nursery.start(mount.serve)``); SupplementError if that failed."""
        failure: SupplementError | None = None
        async with trio.open_nursery() as nursery:

            async def announce() -> None:
                nonlocal failure
                await self._init_done.wait()
                try:
                    task_status.started(self.negotiated())
                except SupplementError as exc:
                    # Raised outside: inside the nursery it would come in an ExceptionGroup.
                    failure = SupplementError(*exc.args)
                    nursery.cancel_scope.cancel()

            self._dispatcher.nursery = nursery
            nursery.start_soon(INTERRUPTS.watch)
            nursery.start_soon(announce)
            await pyfuse3.main(max_tasks=max_tasks)
            nursery.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None

    def negotiated(self) -> Negotiated:
        """What FUSE_INIT came to; SupplementError if it failed or has not been."""
        outcome = _supplement.negotiation()
        if outcome is None:
            raise SupplementError("the kernel has not sent FUSE_INIT yet")
        error, offered, _proposed, granted = outcome
        result = decode(self._options, offered, granted)
        if error:
            missing = self._options.required() & ~result.offered
            raise SupplementError(
                f"FUSE_INIT failed ({os.strerror(error)}); the kernel, FUSE {result.protocol[0]}."
                f"{result.protocol[1]}, does not offer: {missing!r}"
            )
        return result

    def close(self, *, unmount: bool = True) -> None:
        """End the session, after `serve`. With ``unmount=False`` programs see ENOTCONN under the mount point
        once this process is gone, rather than the empty directory below it."""
        pyfuse3.close(unmount=unmount)
        self.notifier.close()
        os.close(self._replies.device)
        self._replies.device = -1


def _taken(options: InitOptions, extra: ExtraOperations) -> frozenset[Opcode]:
    taken = implemented(extra)
    if options.locks and not {Opcode.GETLK, Opcode.SETLK} <= taken:
        raise SupplementError("locks were asked for, but the filesystem implements no getlk and setlk")
    if options.readdirplus_auto and Opcode.READDIR not in taken:
        raise SupplementError("readdirplus_auto was asked for, but the filesystem implements no readdir")
    return taken | {Opcode.INTERRUPT}


def _check_one_libfuse() -> None:
    """pyfuse3 and the supplement must be linked to the same libfuse, or sessions of one reach the other."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        fields = (line.split(maxsplit=5) for line in maps)
        paths = {f[5].strip() for f in fields if len(f) == 6 and "/libfuse3.so" in f[5]}
    if len(paths) != 1:
        raise SupplementError(f"pyfuse3 and nfsfuse use two libfuse {sorted(paths)}; run: pip install .")


def mount(
    operations: pyfuse3.Operations,
    mountpoint: str,
    fuse_options: set[str],
    init: InitOptions,
    extra: ExtraOperations,
    replies: Replies,
    quick: QuickAnswers = NOTHING_QUICK,
) -> Mount:
    """Mount through pyfuse3; *fuse_options* are its (``pyfuse3.default_options``, ``fsname=...``). Requests
    that *quick* answers, at once or through *replies*, reach neither *operations* nor *extra*.

    Raises `SupplementError`, or RuntimeError from pyfuse3 if the system refuses the mount.
    """
    _check_one_libfuse()
    dispatcher = Dispatcher(extra, INTERRUPTS, replies)
    init_done = trio.Event()

    def on_init() -> None:
        outcome = _supplement.negotiation()
        assert outcome is not None
        _, offered, _, granted = outcome
        flags = decode(init, offered, granted).granted
        dispatcher.short_setxattr = InitFlag.SETXATTR_EXT not in flags  # before the first of them comes
        init_done.set()

    _supplement.arm(
        taken=sum(1 << opcode for opcode in _taken(init, extra)),
        quick=sum(1 << opcode for opcode in quick.opcodes),
        wanted=init.flags(),
        decided=DECIDED,
        required=init.required(),
        max_readahead=init.max_readahead,
        max_write=init.max_write,
        max_background=init.max_background,
        congestion_threshold=init.congestion_threshold,
        on_message=dispatcher.on_message,
        on_init=on_init,
        on_quick=quick.answer,
    )
    pyfuse3.trio = TrioForPyfuse3(_supplement.receive)  # type: ignore[attr-defined]
    pyfuse3.init(operations, mountpoint, fuse_options)
    if _supplement.device() < 0:
        pyfuse3.close(unmount=True)
        raise SupplementError("pyfuse3 did not mount through the supplement; reinstall both: pip install .")
    replies.device = os.dup(_supplement.device())  # our own, so that it lives until `Mount.close`
    return Mount(init, dispatcher, replies, init_done)
