"""nfsfuse with a fault in it: ``crashing_mount.py FAULT TRIGGER ARGUMENT...``; the rest is its command line.

The fault is there from when the file TRIGGER is: until then the mount is as it should be.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import trio

from nfsfuse.cli.main import main
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.session import Session
from nfsfuse.fuse.upcalls.operations import Operations
from nfsfuse.fuse.upcalls.quick import Quick


def fails(*_: Any, **__: Any) -> None:
    raise AssertionError("the fault of this test")


def fails_later(*_: Any, **__: Any) -> Coroutine[Any, Any, None]:
    async def fail() -> None:
        fails()

    return fail()


def does_nothing(*_: Any, **__: Any) -> Coroutine[Any, Any, None]:
    async def nothing() -> None:
        await trio.lowlevel.checkpoint()

    return nothing()


def blocks(*_: Any, **__: Any) -> None:
    ctypes.PyDLL(None).sleep(1000)  # Python's lock stays taken, as in a system call of a compiled module


def turns_for_ever(*_: Any, **__: Any) -> None:
    while True:
        pass


FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "recall": (PageProtocol, "revoke", fails_later),
    "invariant": (PageProtocol, "gather_all_mmap_users", does_nothing),  # K1: pages are left in the kernel
    "handler": (Operations, "forget", fails_later),
    "session": (Session, "advance", fails),
    "blocks": (Quick, "answer", blocks),
    "turns for ever": (Quick, "answer", turns_for_ever),
}
"""What is replaced by what."""


def insert(fault: str, trigger: Path) -> None:
    kind, name, what = FAULTS[fault]
    right = getattr(kind, name)

    @functools.wraps(right)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return (what if trigger.exists() else right)(*args, **kwargs)

    setattr(kind, name, wrong)


if __name__ == "__main__":
    insert(sys.argv[1], Path(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
