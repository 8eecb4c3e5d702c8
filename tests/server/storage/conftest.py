"""The storages under test: `storage` runs a test against every implementation, `local` only against the
default one, on a disk and on tmpfs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.memory_storage import MemoryStorage

SECRET = bytes(range(32))


def _on_tmpfs() -> bool:
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1:3] == ["/dev/shm", "tmpfs"] for line in mounts)


@pytest.fixture
def secret() -> bytes:
    return SECRET


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(params=["disk", "tmpfs"])
def local_dir(request: pytest.FixtureRequest, tmp_path: Path, as_root: None) -> Iterator[Path]:
    if request.param == "disk":
        export = tmp_path / "export"
        export.mkdir()
        yield export
        return
    if not _on_tmpfs():
        pytest.skip("/dev/shm is no tmpfs")
    path = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="storage-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def local(local_dir: Path) -> Iterator[LocalStorage]:
    storage = LocalStorage(local_dir, SECRET)
    yield storage
    storage._cache.check()
    storage.close()


@dataclass
class Restartable:
    """A storage whose server can die: nothing is said to it, and the next one begins on what it leaves."""

    storage: Storage
    path: Path | None  # of a local one

    def restart(self) -> Storage:
        """The next server's storage."""
        if isinstance(self.storage, MemoryStorage):
            self.storage.restart()
        else:
            assert isinstance(self.storage, LocalStorage)
            assert self.path is not None
            self.storage.close()
            self.storage = LocalStorage(self.path, SECRET)
        return self.storage

    def check(self) -> None:
        """The invariants of whichever it is."""
        if isinstance(self.storage, MemoryStorage):
            self.storage.check()
        elif isinstance(self.storage, LocalStorage):
            self.storage._cache.check()


@pytest.fixture(params=["memory", "disk", "tmpfs"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Restartable]:
    """A storage of each kind that keeps its handles over a restart."""
    if request.param == "memory":
        made = Restartable(MemoryStorage(), None)
    else:
        if request.param == "tmpfs" and not _on_tmpfs():
            pytest.skip("/dev/shm is no tmpfs")
        if os.geteuid() != 0:
            pytest.skip("persistent handles need root")
        base = Path("/dev/shm") if request.param == "tmpfs" else tmp_path
        path = Path(tempfile.mkdtemp(dir=base, prefix="storage-test-"))
        made = Restartable(LocalStorage(path, SECRET), path)
    yield made
    made.check()
    made.storage.close()
    if made.path is not None:
        shutil.rmtree(made.path)


@pytest.fixture(params=["memory", "disk", "tmpfs", "volatile"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "memory":
        memory = MemoryStorage()
        yield memory
        memory.check()
        memory.close()
        return
    if request.param == "tmpfs" and not _on_tmpfs():
        pytest.skip("/dev/shm is no tmpfs")
    if request.param != "volatile" and os.geteuid() != 0:
        pytest.skip("persistent handles need root")
    base = Path("/dev/shm") if request.param == "tmpfs" else tmp_path
    path = Path(tempfile.mkdtemp(dir=base, prefix="storage-test-"))
    local = LocalStorage(path, None if request.param == "volatile" else SECRET)
    yield local
    local._cache.check()
    local.close()
    shutil.rmtree(path)
