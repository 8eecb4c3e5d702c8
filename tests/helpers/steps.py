"""A storage that knows where its methods are called: by a step, in a thread, or where they must not be."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from nfsfuse_server.storage.interface import AT_ONCE, BLOCKING, Storage
from tests.helpers.disk import InlineDisk

T = TypeVar("T")


class MarkingDisk(InlineDisk):
    """Says what it is running: a quick call, or (as if in a thread) a slow one."""

    def __init__(self) -> None:
        super().__init__()
        self.running = ""

    def quick(self, call: Callable[[], T]) -> T | Coroutine[Any, Any, T]:
        return super().quick(lambda: self._run("quick", call))

    async def slow(self, call: Callable[[], T]) -> T:
        return await super().slow(lambda: self._run("slow", call))

    def _run(self, how: str, call: Callable[[], T]) -> T:
        before, self.running = self.running, how
        try:
            return call()
        finally:
            self.running = before


class StepsOnly:
    """*storage*; once it is *guarded*, methods that block are called in slow calls of *disk* only, and all
    others that are not at once in its calls."""

    def __init__(self, storage: Storage, disk: MarkingDisk) -> None:
        self._storage = storage
        self._disk = disk
        self.guarded = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if not callable(method):  # what is known of the filesystem from the beginning
            return method

        def checked(*args: Any, **kwargs: Any) -> Any:
            if self.guarded and name not in AT_ONCE:
                running = self._disk.running
                fine = running == "slow" or (running and name not in BLOCKING)
                assert fine, f"{name} on the event loop"
            return method(*args, **kwargs)

        return checked
