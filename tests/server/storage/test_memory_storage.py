"""What only the memory storage does: power failures, faults, determinism."""

from __future__ import annotations

import errno

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges, Credentials, InodeHandle, Node
from tests.helpers.memory_storage import MemoryStorage

ME = Credentials(0, 0)


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage()


def create(memory: MemoryStorage, name: bytes) -> Node:
    return memory.create(memory.root().handle, name, 0o644, ME)


def names(memory: MemoryStorage) -> set[bytes]:
    return {entry.name for entry in memory.readdir(memory.root().handle, 0, 100)[0]}


def test_a_crash_loses_what_was_not_made_durable(memory: MemoryStorage) -> None:
    root = memory.root().handle
    kept, lost = create(memory, b"kept"), None
    memory.write(kept.handle, 0, b"durable")
    memory.fsync(kept.handle, False)
    memory.write(kept.handle, 0, b"VOLATILE AND LONGER")
    memory.setattr(kept.handle, AttributeChanges(mode=0o600))
    lost = create(memory, b"lost")
    memory.unlink(root, b"kept")
    memory.crash()
    memory.check()
    assert names(memory) == {b"kept"}
    assert memory.lookup(root, b"kept").handle == kept.handle
    assert memory.read(kept.handle, 0, 100) == b"durable"
    assert memory.getattr(kept.handle).mode == kept.attributes.mode
    with pytest.raises(FsError) as caught:
        memory.getattr(lost.handle)
    assert caught.value.errno == errno.ESTALE
    assert create(memory, b"lost").handle != lost.handle


def test_a_directory_sync_commits_names_but_no_content(memory: MemoryStorage) -> None:
    root = memory.root().handle
    file = create(memory, b"file")
    memory.write(file.handle, 0, b"content")
    directory = memory.mkdir(root, b"dir", 0o755, ME)
    memory.rename(root, b"file", directory.handle, b"moved", 0)
    memory.fsync_dir(root)
    memory.rename(root, b"dir", root, b"renamed", 0)
    memory.crash()
    memory.check()
    assert names(memory) == {b"dir"}
    assert memory.lookup(directory.handle, b"moved").handle == file.handle
    assert memory.read(file.handle, 0, 100) == b""


def test_a_committed_removal_stays_and_the_pinned_inode_is_an_orphan(memory: MemoryStorage) -> None:
    file = create(memory, b"file")
    memory.fsync(file.handle, False)
    memory.pin(file.handle)
    memory.unlink(memory.root().handle, b"file")
    memory.fsync_dir(memory.root().handle)
    memory.crash()
    memory.check()
    assert names(memory) == set()
    assert memory.orphans() == [file.handle]
    memory.sweep()
    memory.check()
    with pytest.raises(FsError):
        memory.getattr(file.handle)


def test_an_orphan_that_ended_comes_back_unless_that_was_committed(memory: MemoryStorage) -> None:
    root = memory.root().handle
    for committed in (False, True):
        file = create(memory, b"file")
        memory.pin(file.handle)
        memory.unlink(root, b"file")
        memory.fsync_dir(root)
        memory.unpin(file.handle)
        if committed:
            memory.fsync_dir(root)
        memory.crash()
        memory.check()
        assert memory.orphans() == ([] if committed else [file.handle])
        memory.sweep()
        memory.fsync_dir(root)


def test_an_uncommitted_removal_is_undone(memory: MemoryStorage) -> None:
    root = memory.root().handle
    a, b = create(memory, b"a"), create(memory, b"b")
    memory.write(b.handle, 0, b"victim")
    memory.fsync(b.handle, False)
    memory.rename(root, b"a", root, b"b", 0)
    memory.crash()
    memory.check()
    assert memory.lookup(root, b"a").handle == a.handle
    assert memory.read(memory.lookup(root, b"b").handle, 0, 10) == b"victim"


def test_faults_come_before_effects() -> None:
    seen: list[tuple[str, InodeHandle | None]] = []

    def fault(operation: str, handle: InodeHandle | None) -> None:
        seen.append((operation, handle))
        if operation in ("write", "fsync", "mkdir"):
            raise FsError(errno.EIO)

    memory = MemoryStorage(fault=fault)
    root = memory.root().handle
    file = create(memory, b"f").handle
    for attempt in (
        lambda: memory.write(file, 0, b"x"),
        lambda: memory.fsync(file, False),
        lambda: memory.mkdir(root, b"d", 0o755, ME),
    ):
        with pytest.raises(FsError) as caught:
            attempt()
        assert caught.value.errno == errno.EIO
    assert memory.getattr(file).size == 0
    assert names(memory) == {b"f"}
    assert ("root", None) in seen
    assert ("write", file) in seen


def test_two_runs_are_alike() -> None:
    def run() -> list[object]:
        clock = iter(range(1000, 10**6, 7))
        memory = MemoryStorage(clock=lambda: next(clock))
        nodes = [create(memory, b"%d" % number) for number in range(5)]
        memory.unlink(memory.root().handle, b"3")
        memory.write(nodes[1].handle, 0, b"x")
        return [*memory.readdir(memory.root().handle, 0, 9)[0], *nodes, memory.statfs()]

    assert run() == run()
