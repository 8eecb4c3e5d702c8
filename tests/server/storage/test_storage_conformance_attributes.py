"""What every storage does with attributes, extended attributes and pins."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import TIME_NS_MAX, TIME_NS_MIN, AttributeChanges, Credentials, InodeHandle
from nfsfuse_server.storage.inode_flags import (
    FS_CASEFOLD_FL,
)
from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.memory_flags import FS_APPEND_FL, FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE

ME = Credentials(os.geteuid(), os.getegid())
SECOND = 1_000_000_000


@contextmanager
def raises(*numbers: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


@pytest.fixture
def file(storage: Storage) -> InodeHandle:
    return storage.create(storage.root().handle, b"file", 0o644, ME).handle


@pytest.fixture
def directory(storage: Storage) -> InodeHandle:
    return storage.mkdir(storage.root().handle, b"dir", 0o755, ME).handle


@pytest.fixture
def symlink(storage: Storage) -> InodeHandle:
    return storage.symlink(storage.root().handle, b"link", b"nowhere", ME).handle


def test_a_handle_that_was_never_issued_is_stale(storage: Storage, file: InodeHandle) -> None:
    for forged in (b"", b"x", bytes(16), file[:-1], file + b"\0", b"\xff" * 200, file[:-1] + b"\xee"):
        for attempt in (storage.getattr, storage.pin, storage.readlink, storage.listxattr):
            with raises(errno.ESTALE):
                attempt(InodeHandle(forged))


def test_no_change_changes_nothing(storage: Storage, file: InodeHandle) -> None:
    before = storage.getattr(file)
    assert storage.setattr(file, AttributeChanges()) == before


def test_mode(storage: Storage, file: InodeHandle, directory: InodeHandle, symlink: InodeHandle) -> None:
    for mode in (0o7777, 0o1700, 0, 0o640):
        assert storage.setattr(file, AttributeChanges(mode=mode)).mode == stat.S_IFREG | mode
        assert storage.setattr(directory, AttributeChanges(mode=mode)).mode == stat.S_IFDIR | mode
    with raises(errno.EOPNOTSUPP):
        storage.setattr(symlink, AttributeChanges(mode=0o600))


def test_owner(storage: Storage, file: InodeHandle, symlink: InodeHandle, as_root: None) -> None:
    for handle in (file, symlink):
        found = storage.setattr(handle, AttributeChanges(uid=1000))
        assert (found.uid, found.gid) == (1000, 0)
        found = storage.setattr(handle, AttributeChanges(gid=2**32 - 2))
        assert (found.uid, found.gid) == (1000, 2**32 - 2)
    for number in (-1, 2**32 - 1):
        with raises(errno.EINVAL):
            storage.setattr(file, AttributeChanges(uid=number))


def test_chown_clears_set_id_bits_of_files_only(
    storage: Storage, file: InodeHandle, directory: InodeHandle, as_root: None
) -> None:
    storage.setattr(file, AttributeChanges(mode=0o6755))
    assert stat.S_IMODE(storage.setattr(file, AttributeChanges(uid=1)).mode) == 0o755
    storage.setattr(file, AttributeChanges(mode=0o6745))
    assert stat.S_IMODE(storage.setattr(file, AttributeChanges(gid=1)).mode) == 0o2745
    storage.setattr(directory, AttributeChanges(mode=0o6755))
    assert stat.S_IMODE(storage.setattr(directory, AttributeChanges(uid=1)).mode) == 0o6755
    both = AttributeChanges(uid=2, mode=0o6711)
    assert stat.S_IMODE(storage.setattr(file, both).mode) == 0o6711


def test_times(storage: Storage, file: InodeHandle, directory: InodeHandle, symlink: InodeHandle) -> None:
    for handle in (file, directory, symlink):
        stamp = 1_234_567_890_123_456_789
        found = storage.setattr(handle, AttributeChanges(atime_ns=stamp, mtime_ns=-5 * SECOND + 7))
        assert (found.atime_ns, found.mtime_ns) == (stamp, -5 * SECOND + 7)
        found = storage.setattr(handle, AttributeChanges(mtime_ns=1))
        assert (found.atime_ns, found.mtime_ns) == (stamp, 1)
        found = storage.setattr(handle, AttributeChanges(atime_now=True))
        assert found.atime_ns not in (stamp, 1)
        assert found.mtime_ns == 1
        before = found.ctime_ns
        assert storage.setattr(handle, AttributeChanges(mtime_now=True)).ctime_ns >= before
    with raises(errno.EINVAL):
        storage.setattr(file, AttributeChanges(atime_ns=2**64))


def test_far_times(storage: Storage, file: InodeHandle) -> None:
    """Beyond what a signed number of nanoseconds holds; what no filesystem keeps is the nearest it does."""
    for stamp in (2**63, 15_032_385_534 * SECOND, -(2**31) * SECOND):
        found = storage.setattr(file, AttributeChanges(atime_ns=stamp, mtime_ns=stamp))
        assert (found.atime_ns, found.mtime_ns) == (stamp, stamp)
    for stamp in (TIME_NS_MIN, TIME_NS_MAX):
        found = storage.setattr(file, AttributeChanges(mtime_ns=stamp))
        assert TIME_NS_MIN <= found.mtime_ns <= TIME_NS_MAX


def test_a_read_is_an_access_only_if_that_is_said(storage: Storage, file: InodeHandle) -> None:
    """relatime of mount(8), by which tests are mounted (or noatime, where nothing is kept)."""
    if not storage.keeps_access_times:
        pytest.skip("the filesystem is mounted with noatime")
    storage.write(file, 0, b"content")
    before = storage.setattr(file, AttributeChanges(atime_ns=1, mtime_ns=2))
    assert storage.read(file, 0, 100) == b"content"
    assert storage.read_nowait(file, 0, 7) in (b"content", None)  # None: the filesystem cannot tell
    assert storage.getattr(file) == before
    storage.accessed(file)
    after = storage.getattr(file)
    assert after.atime_ns >= before.ctime_ns
    assert after == replace(before, atime_ns=after.atime_ns), "no other time changes"
    assert storage.read(file, 0, 100) == b"content"
    assert storage.getattr(file) == after


def test_only_files_are_accessed(storage: Storage, directory: InodeHandle, symlink: InodeHandle) -> None:
    with raises(errno.EISDIR):
        storage.accessed(directory)
    with raises(errno.EINVAL):
        storage.accessed(symlink)


def test_size(storage: Storage, file: InodeHandle, directory: InodeHandle, symlink: InodeHandle) -> None:
    storage.write(file, 0, b"x" * 5000)
    assert storage.setattr(file, AttributeChanges(size=10)).size == 10
    assert storage.setattr(file, AttributeChanges(size=20)).size == 20
    assert storage.read(file, 0, 100) == b"x" * 10 + bytes(10)
    with raises(errno.EISDIR):
        storage.setattr(directory, AttributeChanges(size=0))
    with raises(errno.EINVAL):
        storage.setattr(symlink, AttributeChanges(size=0))
    with raises(errno.EINVAL):
        storage.setattr(file, AttributeChanges(size=-1))


def test_size_and_times_together_end_with_the_times(storage: Storage, file: InodeHandle) -> None:
    found = storage.setattr(file, AttributeChanges(mode=0o600, size=3, mtime_ns=5, atime_ns=6))
    assert (found.mode, found.size, found.mtime_ns, found.atime_ns) == (stat.S_IFREG | 0o600, 3, 5, 6)


def test_a_change_of_names_touches_the_directory(storage: Storage, directory: InodeHandle) -> None:
    old = storage.setattr(directory, AttributeChanges(mtime_ns=1)).mtime_ns
    storage.create(directory, b"x", 0o644, ME)
    assert storage.getattr(directory).mtime_ns > old


def test_statfs(storage: Storage) -> None:
    found = storage.statfs()
    assert found.blocks >= found.blocks_free >= found.blocks_available > 0
    assert found.name_size_max == 255
    assert found.block_size % 512 == 0


def test_xattrs(storage: Storage, file: InodeHandle, directory: InodeHandle) -> None:
    for handle in (file, directory):
        assert storage.listxattr(handle) == []
        with raises(errno.ENODATA):
            storage.getxattr(handle, b"user.a")
        with raises(errno.ENODATA):
            storage.setxattr(handle, b"user.a", b"1", os.XATTR_REPLACE)
        storage.setxattr(handle, b"user.a", b"1", os.XATTR_CREATE)
        with raises(errno.EEXIST):
            storage.setxattr(handle, b"user.a", b"2", os.XATTR_CREATE)
        storage.setxattr(handle, b"user.a", b"\0bin\xff" * 50, os.XATTR_REPLACE)
        storage.setxattr(handle, b"user.empty", b"", 0)
        assert storage.getxattr(handle, b"user.a") == b"\0bin\xff" * 50
        assert storage.getxattr(handle, b"user.empty") == b""
        assert storage.listxattr(handle) == [b"user.a", b"user.empty"]
        storage.removexattr(handle, b"user.a")
        with raises(errno.ENODATA):
            storage.removexattr(handle, b"user.a")
        assert storage.listxattr(handle) == [b"user.empty"]


def test_xattr_errors(storage: Storage, file: InodeHandle, symlink: InodeHandle) -> None:
    with raises(errno.EOPNOTSUPP):
        storage.setxattr(file, b"nonsense", b"", 0)
    for name in (b"", b"user." + b"x" * 251):
        with raises(errno.ERANGE):
            storage.setxattr(file, name, b"", 0)
    with raises(errno.EINVAL):
        storage.setxattr(file, b"user.a\0b", b"", 0)
    with raises(errno.EINVAL):
        storage.setxattr(file, b"user.a", b"", 3)
    with raises(errno.E2BIG):
        storage.setxattr(file, b"user.a", bytes(65537), 0)
    with raises(errno.EPERM):
        storage.setxattr(symlink, b"user.a", b"", 0)
    assert storage.listxattr(symlink) == []


def test_trusted_xattrs_of_symbolic_links(storage: Storage, symlink: InodeHandle, as_root: None) -> None:
    storage.setxattr(symlink, b"trusted.a", b"value", 0)
    assert storage.getxattr(symlink, b"trusted.a") == b"value"
    assert storage.listxattr(symlink) == [b"trusted.a"]
    storage.removexattr(symlink, b"trusted.a")


def test_a_pinned_inode_outlives_its_last_name(storage: Storage, file: InodeHandle) -> None:
    root = storage.root().handle
    storage.pin(file)
    storage.pin(file)
    storage.write(file, 0, b"before")
    assert storage.unlink(root, b"file").attributes.nlink == 0
    storage.write(file, 6, b" after")
    assert storage.read(file, 0, 100) == b"before after"
    assert storage.setattr(file, AttributeChanges(mode=0o600, size=6)).nlink == 0
    storage.fsync(file, datasync=False)
    again = storage.create(root, b"file", 0o644, ME)
    assert again.handle != file
    with raises(errno.ENOENT):
        storage.link(file, root, b"resurrected")
    storage.unpin(file)
    assert storage.read(file, 0, 100) == b"before"
    storage.unpin(file)
    with raises(errno.ESTALE):
        storage.read(file, 0, 100)


def test_a_pinned_inode_outlives_being_overwritten(storage: Storage, file: InodeHandle) -> None:
    root = storage.root().handle
    storage.write(file, 0, b"old")
    storage.pin(file)
    storage.create(root, b"new", 0o644, ME)
    storage.rename(root, b"new", root, b"file", 0)
    assert storage.read(file, 0, 100) == b"old"
    storage.unpin(file)
    with raises(errno.ESTALE):
        storage.getattr(file)


def test_pins_of_a_linked_inode_come_and_go(storage: Storage, file: InodeHandle) -> None:
    for _ in range(3):
        storage.pin(file)
        storage.write(file, 0, b"x")
        storage.unpin(file)
    assert storage.read(file, 0, 1) == b"x"
    with pytest.raises(AssertionError, match="unpin"):
        storage.unpin(file)


def test_flags_of_an_inode(storage: Storage) -> None:
    root = storage.root().handle
    file = storage.create(root, b"flagged", 0o644, ME).handle
    link = storage.symlink(root, b"link", b"target", ME).handle
    (before,) = storage.get_flags(file, False)
    assert before & FS_IMMUTABLE_FL == 0
    storage.check_open(file, os.O_RDWR)
    storage.set_flags(file, (before | FS_APPEND_FL,), False)
    assert storage.get_flags(file, False) == (before | FS_APPEND_FL,)
    with raises(errno.EPERM):
        storage.check_open(file, os.O_RDWR)
    storage.check_open(file, os.O_WRONLY | os.O_APPEND)
    assert storage.write(file, 0, b"content").size == 7
    storage.set_flags(file, (before | FS_IMMUTABLE_FL,), False)
    assert storage.get_flags(file, True)[0] & FS_XFLAG_IMMUTABLE
    with raises(errno.EPERM):
        storage.check_open(file, os.O_WRONLY | os.O_APPEND)
    storage.set_flags(file, (before,), False)
    storage.check_open(file, os.O_RDWR)
    with raises(errno.EOPNOTSUPP):
        storage.set_flags(file, (before | FS_CASEFOLD_FL,), False)
    for numbers, extended in (((1, 2), False), ((1,), True), ((2**32,), False)):
        with raises(errno.EINVAL):
            storage.set_flags(file, numbers, extended)
    with raises(errno.ENOTTY):
        storage.get_flags(link, False)
    assert storage.get_flags(root, False)


def test_an_append_only_file_takes_what_is_added_at_its_end(local: LocalStorage) -> None:
    file = local.create(local.root().handle, b"log", 0o644, ME).handle
    local.write(file, 0, b"one")
    (before,) = local.get_flags(file, False)
    local.pin(file)
    local.unpin(file)  # closes what is open for writing
    local.set_flags(file, (before | FS_APPEND_FL,), False)
    try:
        assert local.write(file, 3, b"two").size == 6
        for offset in (0, 7):
            with raises(errno.EPERM):
                local.write(file, offset, b"no")
        assert local.read(file, 0, 100) == b"onetwo"
    finally:
        local.set_flags(file, (before,), False)
