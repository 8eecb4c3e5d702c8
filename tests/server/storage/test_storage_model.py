"""Random operations on the local directory and on the memory storage side by side: each is the other's model.

Times, inode numbers, directory sizes and block counts may differ; nothing else may, down to the errno.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges, Attributes, Credentials, InodeHandle, Node
from nfsfuse_server.storage.interface import Renamed, Storage
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.memory_storage import MemoryStorage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
INODES = st.integers(0, 40)
MODES = st.sampled_from([0o644, 0o755, 0o2775, 0o4711, 0o6755, 0o1777, 0])
CREDS = st.builds(Credentials, st.sampled_from([0, 1000]), st.sampled_from([0, 100]))
OFFSETS = st.integers(0, 20_000)
DATA = st.binary(max_size=6000)


class SideBySide(RuleBasedStateMachine):
    """Inodes are numbered in the order in which they were met; a number stands for one handle in each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="storage-model-")
        self.memory = MemoryStorage()
        self.local = LocalStorage(self.directory.name, bytes(32), descriptors_max=6)
        os.chmod(self.directory.name, 0o755)
        self.inodes: list[tuple[InodeHandle, InodeHandle]] = []
        self.pins: list[int] = []
        self.meet(self.memory.root(), self.local.root())

    def teardown(self) -> None:
        self.memory.check()
        self.local._cache.check()
        self.local.close()
        self.directory.cleanup()

    def meet(self, memory: Node, local: Node) -> int:
        """The number of an inode that both returned; checks that it is the same one."""
        pair = (memory.handle, local.handle)
        if pair not in self.inodes:
            assert all(pair[0] != known[0] and pair[1] != known[1] for known in self.inodes), pair
            self.inodes.append(pair)
        self.alike(memory.attributes, local.attributes)
        return self.inodes.index(pair)

    def alike(self, memory: Any, local: Any) -> None:
        match memory, local:
            case Node(), Node():
                self.meet(memory, local)
            case Attributes(), Attributes():
                size_counts = not stat.S_ISDIR(memory.mode)
                for field in ("mode", "nlink", "uid", "gid", "rdev", *(["size"] if size_counts else [])):
                    assert getattr(memory, field) == getattr(local, field), field
            case Renamed(), Renamed():
                assert memory.unchanged == local.unchanged
                self.alike(memory.moved, local.moved)
                self.alike(memory.other, local.other)
            case tuple(), tuple():
                for one, other in zip(memory, local, strict=True):
                    self.alike(one, other)
            case _:
                assert memory == local

    def both(self, call: Callable[[Storage, Callable[[int], InodeHandle]], object]) -> None:
        """Does the same to both; *call* gets the storage and what turns a number into its handle."""
        outcomes: list[object] = []
        for side, storage in enumerate((self.memory, self.local)):
            try:
                outcomes.append(call(storage, lambda n, side=side: self.inodes[n % len(self.inodes)][side]))
            except FsError as exc:
                outcomes.append(exc.errno)
        self.alike(*outcomes)

    @rule(parent=INODES, name=NAMES, mode=MODES, creds=CREDS)
    def create(self, parent: int, name: bytes, mode: int, creds: Credentials) -> None:
        self.both(lambda s, h: s.create(h(parent), name, mode, creds))

    @rule(parent=INODES, name=NAMES, mode=MODES, creds=CREDS)
    def mkdir(self, parent: int, name: bytes, mode: int, creds: Credentials) -> None:
        self.both(lambda s, h: s.mkdir(h(parent), name, mode, creds))

    @rule(parent=INODES, name=NAMES, mode=MODES, creds=CREDS)
    def mkfifo(self, parent: int, name: bytes, mode: int, creds: Credentials) -> None:
        self.both(lambda s, h: s.mknod(h(parent), name, stat.S_IFIFO | mode, 0, creds))

    @rule(parent=INODES, name=NAMES, text=NAMES, creds=CREDS)
    def symlink(self, parent: int, name: bytes, text: bytes, creds: Credentials) -> None:
        self.both(lambda s, h: s.symlink(h(parent), name, text, creds))

    @rule(inode=INODES, parent=INODES, name=NAMES)
    def link(self, inode: int, parent: int, name: bytes) -> None:
        self.both(lambda s, h: s.link(h(inode), h(parent), name))

    @rule(parent=INODES, name=NAMES)
    def lookup(self, parent: int, name: bytes) -> None:
        self.both(lambda s, h: s.lookup(h(parent), name))

    @rule(parent=INODES, name=NAMES)
    def unlink(self, parent: int, name: bytes) -> None:
        self.both(lambda s, h: s.unlink(h(parent), name))

    @rule(parent=INODES, name=NAMES)
    def rmdir(self, parent: int, name: bytes) -> None:
        self.both(lambda s, h: s.rmdir(h(parent), name))

    @rule(parent=INODES, name=NAMES, new_parent=INODES, new_name=NAMES, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self.both(lambda s, h: s.rename(h(parent), name, h(new_parent), new_name, flags))

    @rule(inode=INODES)
    def readlink(self, inode: int) -> None:
        self.both(lambda s, h: s.readlink(h(inode)))

    @rule(inode=INODES, offset=OFFSETS, data=DATA)
    def write(self, inode: int, offset: int, data: bytes) -> None:
        self.both(lambda s, h: s.write(h(inode), offset, data))

    @rule(inode=INODES, offset=OFFSETS, size=OFFSETS)
    def read(self, inode: int, offset: int, size: int) -> None:
        self.both(lambda s, h: s.read(h(inode), offset, size))

    @rule(inode=INODES, mode=st.sampled_from([0, 1, 3, 16, 17]), offset=OFFSETS, size=st.integers(1, 9000))
    def fallocate(self, inode: int, mode: int, offset: int, size: int) -> None:
        self.both(lambda s, h: s.fallocate(h(inode), mode, offset, size))

    @rule(from_inode=INODES, from_offset=OFFSETS, to_inode=INODES, to_offset=OFFSETS, size=OFFSETS)
    def copy_range(self, from_inode: int, from_offset: int, to_inode: int, to_offset: int, size: int) -> None:
        def copy(storage: Storage, handle: Callable[[int], InodeHandle]) -> int:
            """All of it: how much one call copies is the kernel's choice."""
            done = 0
            while count := storage.copy_range(
                handle(from_inode), from_offset + done, handle(to_inode), to_offset + done, size - done
            ):
                done += count
            return done

        self.both(copy)

    @rule(inode=INODES, mode=st.none() | MODES, uid=st.none() | st.just(7), size=st.none() | OFFSETS)
    def setattr(self, inode: int, mode: int | None, uid: int | None, size: int | None) -> None:
        self.both(lambda s, h: s.setattr(h(inode), AttributeChanges(mode=mode, uid=uid, size=size)))

    @rule(inode=INODES, name=st.sampled_from([b"user.x", b"trusted.y"]), value=DATA, flags=st.integers(0, 2))
    def setxattr(self, inode: int, name: bytes, value: bytes, flags: int) -> None:
        self.both(lambda s, h: s.setxattr(h(inode), name, value[:100], flags))

    @rule(inode=INODES, name=st.sampled_from([b"user.x", b"trusted.y"]))
    def xattrs(self, inode: int, name: bytes) -> None:
        self.both(lambda s, h: s.listxattr(h(inode)))
        self.both(lambda s, h: s.getxattr(h(inode), name))
        self.both(lambda s, h: s.removexattr(h(inode), name))

    @rule(inode=INODES)
    def pin(self, inode: int) -> None:
        def pinned(storage: Storage, handle: Callable[[int], InodeHandle]) -> str:
            storage.pin(handle(inode))
            return "pinned"

        number = inode % len(self.inodes)
        try:
            self.memory.getattr(self.inodes[number][0])
        except FsError:
            self.both(pinned)
            return
        self.both(pinned)
        self.pins.append(number)

    @precondition(lambda self: self.pins)
    @rule(which=INODES)
    def unpin(self, which: int) -> None:
        number = self.pins.pop(which % len(self.pins))
        self.both(lambda s, h: s.unpin(h(number)))

    @rule()
    def restart(self) -> None:
        """Handles stay, also those of pinned inodes without a name; the pins do not."""
        self.local.close()
        self.local = LocalStorage(self.directory.name, bytes(32), descriptors_max=6)
        self.memory.restart()
        self.pins.clear()

    @rule()
    def sweep(self) -> None:
        self.both(lambda s, h: s.sweep())

    @invariant()
    def same_inodes_and_names(self) -> None:
        kept = [
            [number for number, pair in enumerate(self.inodes) if pair[side] in storage.orphans()]
            for side, storage in enumerate((self.memory, self.local))
        ]
        assert kept[0] == kept[1]
        for number in range(len(self.inodes)):
            self.both(lambda s, h, n=number: s.getattr(h(n)))
            self.both(lambda s, h, n=number: sorted(e.name for e in s.readdir(h(n), 0, 100)[0]))


SideBySide.TestCase.settings = settings(
    suppress_health_check=[HealthCheck.too_slow],  # the disk's doing
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    stateful_step_count=40,
)
TestSideBySide = SideBySide.TestCase
