"""Deliberate bugs in what happens when things go wrong. Each has to be found by the simulation."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import pytest

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.fence import Fenced
from nfsfuse.engine.files import Files
from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.open_file import OpenFile
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.page_cache import Outgoing
from nfsfuse.machines.write_errors import WriteErrors
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.machines.grace import Grace
from nfsfuse_server.machines.leases import Leases
from tests.helpers.memory_storage import MemoryStorage
from tests.sim.fault_programs import SIZE
from tests.sim.faults import Kind
from tests.sim.mutations import Mutation, the_lease_never_runs_out

T = TypeVar("T")


def losses_are_not_reported(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriteErrors, "lost", lambda *_: None)


def only_the_first_to_ask_is_told(patch: pytest.MonkeyPatch) -> None:
    """The error is the file's, and forgotten once anybody was told (Linux before errseq_t)."""
    told = Files._told_of_errors

    async def tell(self: Files, opened: OpenFile, write_back: Coroutine[Any, Any, T]) -> T:
        try:
            return await told(self, opened, write_back)
        finally:
            for other in self._open.values():
                if other.file is opened.file:
                    other.errors_told = opened.errors_told

    patch.setattr(Files, "_told_of_errors", tell)


def errors_are_told_for_ever(patch: pytest.MonkeyPatch) -> None:
    told = Files._told_of_errors

    async def tell(self: Files, opened: OpenFile, write_back: Coroutine[Any, Any, T]) -> T:
        before = opened.errors_told
        try:
            return await told(self, opened, write_back)
        finally:
            opened.errors_told = before

    patch.setattr(Files, "_told_of_errors", tell)


def refused_data_are_taken_for_written(patch: pytest.MonkeyPatch) -> None:
    refused = WriteBack._refused

    def forget(self: WriteBack, file: CachedFile, outgoing: Outgoing, error: FsError) -> None:
        file.pages.end_write_back(outgoing, clean=True)
        refused(self, file, outgoing, error)

    patch.setattr(WriteBack, "_refused", forget)


def fsync_does_not_reach_the_disk(patch: pytest.MonkeyPatch) -> None:
    fsync = MemoryStorage.fsync

    def only_empty_files(self: MemoryStorage, handle: InodeHandle, data_only: bool) -> None:
        if self.read(handle, 0, SIZE) == bytes(SIZE):
            fsync(self, handle, data_only)

    patch.setattr(MemoryStorage, "fsync", only_empty_files)


def a_fenced_client_believes_its_caches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Filesystem, "fenced", lambda self: self.suspension.end())


def a_fenced_clients_kernel_keeps_its_pages(patch: pytest.MonkeyPatch) -> None:
    """And what it writes back of them is taken in."""

    async def purge(fenced: Fenced, _: object) -> None:
        for each in fenced.files:
            each.file.purging -= 1

    patch.setattr("nfsfuse.engine.filesystem.purge", purge)


def the_server_fences_before_the_lease_has_run_out(patch: pytest.MonkeyPatch) -> None:
    init = Leases.__init__

    def impatient(self: Leases, lease_seconds: float) -> None:
        init(self, lease_seconds / 3)

    patch.setattr(Leases, "__init__", impatient)


def there_is_no_grace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Grace, "over", property(lambda _: True))


FOUND_UNDER: Final[dict[Mutation, tuple[Kind, ...]]] = {
    losses_are_not_reported: (Kind.CUT_OFF, Kind.REFUSE),
    only_the_first_to_ask_is_told: (Kind.REFUSE,),
    errors_are_told_for_ever: (Kind.REFUSE,),
    refused_data_are_taken_for_written: (Kind.REFUSE,),
    fsync_does_not_reach_the_disk: (Kind.CUT,),
    a_fenced_client_believes_its_caches: (Kind.CUT_OFF,),
    a_fenced_clients_kernel_keeps_its_pages: (Kind.FREEZE_LONG, Kind.KILL) * 5,
    the_lease_never_runs_out: (Kind.CUT_OFF,),
    the_server_fences_before_the_lease_has_run_out: (Kind.CUT, Kind.FREEZE),
    there_is_no_grace: (Kind.RESTART,),
}
"""Under which faults each is looked for. A client mostly drops its pages before its session can be over: to
find them there all the same it has to be kept from running at the right moment, which takes many freezes."""
