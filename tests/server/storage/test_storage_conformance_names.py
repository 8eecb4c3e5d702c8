"""What every storage does with names: creation, removal, rename, listing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Credentials,
    InodeHandle,
    Node,
)
from nfsfuse_server.storage.interface import WHITEOUT_MODE, Listed, Storage

ME = Credentials(os.geteuid(), os.getegid())


@contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno == number, caught.value


def make(storage: Storage, name: bytes, parent: InodeHandle | None = None, mode: int = 0o644) -> Node:
    directory = storage.root().handle if parent is None else parent
    return storage.create(directory, name, mode, ME)


def listing(storage: Storage, directory: InodeHandle, limit: int) -> list[Listed]:
    entries: list[Listed] = []
    eof = False
    while not eof:
        cookie = entries[-1].cookie if entries else 0
        batch, eof = storage.readdir(directory, cookie, limit)
        assert len(batch) <= limit
        entries += batch
    return entries


def names(storage: Storage, directory: InodeHandle) -> set[bytes]:
    return {entry.name for entry in listing(storage, directory, 10)}


def test_root_is_a_directory_of_its_own(storage: Storage) -> None:
    root = storage.root()
    assert stat.S_ISDIR(root.attributes.mode)
    assert storage.getattr(root.handle).ino == root.attributes.ino
    assert listing(storage, root.handle, 10) == []


def test_what_was_created_is_found(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"file")
    directory = storage.mkdir(root, b"dir", 0o750, ME)
    link = storage.symlink(root, b"link", b"file", ME)
    fifo = storage.mknod(root, b"fifo", stat.S_IFIFO | 0o600, 0, ME)
    plain = storage.mknod(root, b"plain", 0o640, 0, ME)
    for name, node in {
        b"file": file,
        b"dir": directory,
        b"link": link,
        b"fifo": fifo,
        b"plain": plain,
    }.items():
        found = storage.lookup(root, name)
        assert found.handle == node.handle
        assert found.attributes == node.attributes == storage.getattr(node.handle)
    assert file.attributes.mode == stat.S_IFREG | 0o644
    assert directory.attributes.mode == stat.S_IFDIR | 0o750
    assert directory.attributes.nlink == 2
    assert stat.S_ISLNK(link.attributes.mode)
    assert link.attributes.size == 4
    assert fifo.attributes.mode == stat.S_IFIFO | 0o600
    assert plain.attributes.mode == stat.S_IFREG | 0o640
    assert storage.readlink(link.handle) == b"file"
    with raises(errno.EINVAL):
        storage.readlink(file.handle)
    with raises(errno.ENOENT):
        storage.lookup(root, b"absent")


def test_the_umask_of_whoever_asks_takes_bits_away(storage: Storage) -> None:
    root, creds = storage.root().handle, Credentials(ME.uid, ME.gid, 0o027)
    file = storage.create(root, b"file", 0o666, creds)
    fifo = storage.mknod(root, b"fifo", stat.S_IFIFO | 0o622, 0, creds)
    others = (storage.mkdir(root, b"dir", 0o1777, creds), fifo, storage.symlink(root, b"link", b"x", creds))
    modes = [stat.S_IMODE(node.attributes.mode) for node in (file, *others)]
    assert modes == [0o640, 0o1750, 0o600, 0o777]
    with raises(errno.EINVAL):
        storage.mkdir(root, b"none", 0o755, Credentials(ME.uid, ME.gid, 0o1000))


def test_what_is_made_is_told_to_have_no_extended_attributes(storage: Storage) -> None:
    """And what may have some is not."""
    root = storage.root().handle
    nodes = [storage.mkdir(root, b"dir", 0o755, ME), storage.create(root, b"file", 0o644, ME)]
    for node in nodes:
        if node.bare:
            assert storage.listxattr(node.handle) == []
    storage.setxattr(nodes[1].handle, b"user.a", b"1", 0)
    assert not storage.lookup(root, b"file").bare


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"/", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"n" * 256, errno.ENAMETOOLONG),
    ],
)
def test_names_are_single_components(storage: Storage, name: bytes, number: int) -> None:
    root = storage.root().handle
    file = make(storage, b"f")
    for attempt in (
        lambda: storage.lookup(root, name),
        lambda: storage.create(root, name, 0o644, ME),
        lambda: storage.mkdir(root, name, 0o755, ME),
        lambda: storage.mknod(root, name, stat.S_IFIFO, 0, ME),
        lambda: storage.symlink(root, name, b"x", ME),
        lambda: storage.link(file.handle, root, name),
        lambda: storage.unlink(root, name),
        lambda: storage.rmdir(root, name),
        lambda: storage.rename(root, name, root, b"x", 0),
        lambda: storage.rename(root, b"f", root, name, 0),
    ):
        with raises(number):
            attempt()
    assert names(storage, root) == {b"f"}


def test_the_longest_name_and_every_byte(storage: Storage) -> None:
    root = storage.root().handle
    every = bytes(set(range(1, 256)) - {ord("/")})
    for name in (b"n" * 255, every, b"...", b" ", b"\xff"):
        assert storage.lookup(root, name if make(storage, name) else b"").handle
    assert len(names(storage, root)) == 5


def test_create_upon_what_is_there(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"f")
    storage.write(file.handle, 0, b"content")
    storage.mkdir(root, b"dir", 0o755, ME)
    storage.symlink(root, b"link", b"elsewhere", ME)
    storage.mknod(root, b"fifo", stat.S_IFIFO | 0o600, 0, ME)
    for name in (b"f", b"dir", b"link", b"fifo"):
        with raises(errno.EEXIST):
            storage.create(root, name, 0o644, ME)
    assert names(storage, root) == {b"f", b"dir", b"link", b"fifo"}
    assert storage.read(file.handle, 0, 100) == b"content"


def test_create_is_atomic_among_threads(storage: Storage) -> None:
    root = storage.root().handle
    outcomes: list[list[bool]] = [[] for _ in range(4)]

    def race(mine: list[bool]) -> None:
        for number in range(50):
            try:
                storage.create(root, b"%d" % number, 0o644, ME)
            except FsError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                mine.append(False)
            else:
                mine.append(True)

    threads = [threading.Thread(target=race, args=(mine,)) for mine in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(made) for made in zip(*outcomes, strict=True)] == [1] * 50


def test_everything_refuses_an_existing_name(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"f")
    for attempt in (
        lambda: storage.mkdir(root, b"f", 0o755, ME),
        lambda: storage.mknod(root, b"f", stat.S_IFIFO | 0o600, 0, ME),
        lambda: storage.symlink(root, b"f", b"x", ME),
        lambda: storage.link(file.handle, root, b"f"),
    ):
        with raises(errno.EEXIST):
            attempt()


def test_a_parent_has_to_be_a_directory(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"f").handle
    for attempt in (
        lambda: storage.lookup(file, b"x"),
        lambda: storage.create(file, b"x", 0o644, ME),
        lambda: storage.mkdir(file, b"x", 0o755, ME),
        lambda: storage.unlink(file, b"x"),
        lambda: storage.rename(root, b"f", file, b"x", 0),
        lambda: storage.readdir(file, 0, 10),
        lambda: storage.fsync_dir(file),
    ):
        with raises(errno.ENOTDIR):
            attempt()


def test_symlink_targets(storage: Storage) -> None:
    root = storage.root().handle
    with raises(errno.ENOENT):
        storage.symlink(root, b"l", b"", ME)
    with raises(errno.ENAMETOOLONG):
        storage.symlink(root, b"l", b"x" * 4096, ME)
    with raises(errno.EINVAL):
        storage.symlink(root, b"l", b"a\0b", ME)
    assert storage.readlink(storage.symlink(root, b"l", b"x" * 4000, ME).handle) == b"x" * 4000


def test_links_count_and_lead_to_one_inode(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"a")
    directory = storage.mkdir(root, b"d", 0o755, ME)
    linked = storage.link(file.handle, directory.handle, b"b")
    assert linked.handle == file.handle
    assert linked.attributes.nlink == 2
    symlink = storage.symlink(root, b"s", b"a", ME)
    assert storage.link(symlink.handle, root, b"s2").handle == symlink.handle
    with raises(errno.EPERM):
        storage.link(directory.handle, root, b"x")
    gone = storage.unlink(root, b"a")
    assert (gone.handle, gone.attributes.nlink) == (file.handle, 1)
    assert storage.lookup(directory.handle, b"b").handle == file.handle


def test_unlink_and_rmdir(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"f")
    directory = storage.mkdir(root, b"d", 0o755, ME)
    assert storage.getattr(root).nlink == 3
    make(storage, b"inner", directory.handle)
    with raises(errno.EISDIR):
        storage.unlink(root, b"d")
    with raises(errno.ENOTDIR):
        storage.rmdir(root, b"f")
    with raises(errno.ENOTEMPTY):
        storage.rmdir(root, b"d")
    for removal in (storage.unlink, storage.rmdir):
        with raises(errno.ENOENT):
            removal(root, b"absent")
    storage.unlink(directory.handle, b"inner")
    gone = storage.rmdir(root, b"d")
    assert (gone.handle, gone.attributes.nlink) == (directory.handle, 0)
    gone = storage.unlink(root, b"f")
    assert (gone.handle, gone.attributes.nlink) == (file.handle, 0)
    assert storage.getattr(root).nlink == 2
    for handle in (file.handle, directory.handle):
        with raises(errno.ESTALE):
            storage.getattr(handle)


def test_a_removed_directory_takes_nothing(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"f")
    directory = storage.mkdir(root, b"d", 0o755, ME).handle
    storage.pin(directory)
    storage.rmdir(root, b"d")
    for attempt in (
        lambda: storage.create(directory, b"x", 0o644, ME),
        lambda: storage.mkdir(directory, b"x", 0o755, ME),
        lambda: storage.link(file.handle, directory, b"x"),
        lambda: storage.lookup(directory, b"x"),
        lambda: storage.rename(root, b"f", directory, b"x", 0),
        lambda: storage.readdir(directory, 0, 10),
    ):
        with raises(errno.ENOENT):
            attempt()
    assert storage.getattr(directory).nlink == 0
    storage.unpin(directory)


def test_rename_moves_and_overwrites(storage: Storage) -> None:
    root = storage.root().handle
    directory = storage.mkdir(root, b"d", 0o755, ME).handle
    file = make(storage, b"a")
    done = storage.rename(root, b"a", directory, b"b", 0)
    assert (done.moved.handle, done.other, done.unchanged) == (file.handle, None, False)
    victim = make(storage, b"victim")
    done = storage.rename(directory, b"b", root, b"victim", 0)
    assert done.moved.handle == file.handle
    assert done.other is not None
    assert (done.other.handle, done.other.attributes.nlink) == (victim.handle, 0)
    assert names(storage, root) == {b"d", b"victim"}
    assert names(storage, directory) == set()
    with raises(errno.ESTALE):
        storage.getattr(victim.handle)
    with raises(errno.ENOENT):
        storage.rename(root, b"absent", root, b"x", 0)


def test_rename_keeps_an_overwritten_inode_with_links(storage: Storage) -> None:
    root = storage.root().handle
    make(storage, b"a")
    victim = make(storage, b"victim")
    storage.link(victim.handle, root, b"kept")
    other = storage.rename(root, b"a", root, b"victim", 0).other
    assert other is not None
    assert (other.handle, other.attributes.nlink) == (victim.handle, 1)
    assert storage.lookup(root, b"kept").handle == victim.handle


def test_rename_between_links_of_one_inode_does_nothing(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"a")
    storage.link(file.handle, root, b"b")
    for new_name in (b"b", b"a"):
        done = storage.rename(root, b"a", root, new_name, 0)
        assert (done.moved.handle, done.other, done.unchanged) == (file.handle, None, True)
    assert names(storage, root) == {b"a", b"b"}
    assert storage.getattr(file.handle).nlink == 2


def test_rename_of_directories(storage: Storage) -> None:
    root = storage.root().handle
    a = storage.mkdir(root, b"a", 0o755, ME)
    b = storage.mkdir(a.handle, b"b", 0o755, ME)
    make(storage, b"f")
    for flags in (0, RENAME_NOREPLACE):
        with raises(errno.EINVAL):
            storage.rename(root, b"a", b.handle, b"x", flags)
    with raises(errno.EINVAL):
        storage.rename(root, b"a", a.handle, b"b", RENAME_EXCHANGE)
    with raises(errno.ENOTEMPTY):
        storage.rename(a.handle, b"b", root, b"a", 0)
    with raises(errno.EINVAL):
        storage.rename(a.handle, b"b", root, b"a", RENAME_EXCHANGE)
    with raises(errno.ENOTDIR):
        storage.rename(root, b"a", root, b"f", 0)
    with raises(errno.EISDIR):
        storage.rename(root, b"f", root, b"a", 0)
    storage.rename(a.handle, b"b", root, b"b", 0)
    assert storage.getattr(root).nlink == 4
    assert storage.getattr(a.handle).nlink == 2
    other = storage.rename(root, b"b", root, b"a", 0).other
    assert other is not None
    assert (other.handle, other.attributes.nlink) == (a.handle, 0)
    assert storage.lookup(root, b"a").handle == b.handle
    assert storage.getattr(root).nlink == 3


def test_rename_noreplace(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"a")
    make(storage, b"b")
    with raises(errno.EEXIST):
        storage.rename(root, b"a", root, b"b", RENAME_NOREPLACE)
    with raises(errno.EEXIST):
        storage.rename(root, b"a", root, b"a", RENAME_NOREPLACE)
    assert storage.rename(root, b"a", root, b"c", RENAME_NOREPLACE).moved.handle == file.handle
    assert names(storage, root) == {b"b", b"c"}


@pytest.mark.parametrize("flags", [RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE])
def test_rename_leaves_a_whiteout(storage: Storage, flags: int) -> None:
    root = storage.root().handle
    file = storage.create(root, b"a", 0o644, ME)
    victim = storage.create(root, b"b", 0o644, ME)
    if flags & RENAME_NOREPLACE:
        with raises(errno.EEXIST):
            storage.rename(root, b"a", root, b"b", flags)
        storage.unlink(root, b"b")
    done = storage.rename(root, b"a", root, b"b", flags)
    assert done.moved.handle == file.handle
    if not flags & RENAME_NOREPLACE:
        assert done.other is not None
        assert (done.other.handle, done.other.attributes.nlink) == (victim.handle, 0)
    left = storage.lookup(root, b"a").attributes
    assert (left.mode, left.rdev, left.nlink) == (WHITEOUT_MODE, 0, 1)
    assert storage.lookup(root, b"b").handle == file.handle
    with raises(errno.EINVAL):
        storage.rename(root, b"a", root, b"b", RENAME_WHITEOUT | RENAME_EXCHANGE)


def test_rename_exchange(storage: Storage) -> None:
    root = storage.root().handle
    directory = storage.mkdir(root, b"d", 0o755, ME)
    inner = storage.mkdir(directory.handle, b"inner", 0o755, ME)
    file = make(storage, b"f")
    with raises(errno.ENOENT):
        storage.rename(root, b"f", root, b"absent", RENAME_EXCHANGE)
    done = storage.rename(root, b"f", directory.handle, b"inner", RENAME_EXCHANGE)
    assert done.other is not None
    assert (done.moved.handle, done.other.handle) == (file.handle, inner.handle)
    assert storage.lookup(root, b"f").handle == inner.handle
    assert storage.lookup(directory.handle, b"inner").handle == file.handle
    assert storage.getattr(root).nlink == 4
    assert storage.getattr(directory.handle).nlink == 2
    assert storage.rename(root, b"f", root, b"f", RENAME_EXCHANGE).unchanged
    for flags in (3, 6, 8, -1):
        with raises(errno.EINVAL):
            storage.rename(root, b"f", root, b"x", flags)


def test_set_group_id_directories_pass_on_their_group(storage: Storage, as_root: None) -> None:
    root = storage.root().handle
    shared = storage.mkdir(root, b"shared", 0o2775, Credentials(1000, 77))
    assert (shared.attributes.mode, shared.attributes.gid) == (stat.S_IFDIR | 0o2775, 77)
    them = Credentials(1001, 88)
    file = storage.create(shared.handle, b"f", 0o644, them)
    assert (file.attributes.uid, file.attributes.gid, file.attributes.mode) == (
        1001,
        77,
        stat.S_IFREG | 0o644,
    )
    inner = storage.mkdir(shared.handle, b"d", 0o755, them)
    assert (inner.attributes.uid, inner.attributes.gid) == (1001, 77)
    assert inner.attributes.mode == stat.S_IFDIR | 0o2755
    assert storage.symlink(shared.handle, b"l", b"x", them).attributes.gid == 77


def test_set_group_id_directory_of_group_0(storage: Storage, as_root: None) -> None:
    shared = storage.mkdir(storage.root().handle, b"shared", 0o2775, Credentials(0, 0))
    file = storage.create(shared.handle, b"f", 0o644, Credentials(1001, 88))
    assert (file.attributes.uid, file.attributes.gid) == (1001, 0)


def test_owner_and_special_bits_of_what_is_created(storage: Storage, as_root: None) -> None:
    root = storage.root().handle
    them = Credentials(1000, 100)
    for number, mode in enumerate((0o4755, 0o2755, 0o6711, 0o1777, 0o000, 0o777)):
        file = storage.create(root, b"f%d" % number, mode, them)
        assert (file.attributes.uid, file.attributes.gid) == (1000, 100)
        assert stat.S_IMODE(file.attributes.mode) == mode
        assert file.attributes == storage.getattr(file.handle)
    assert storage.mkdir(root, b"sticky", 0o1777, them).attributes.mode == stat.S_IFDIR | 0o1777
    link = storage.symlink(root, b"l", b"x", them)
    assert (link.attributes.uid, link.attributes.gid) == (1000, 100)
    device = storage.mknod(root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), them)
    assert (device.attributes.rdev, device.attributes.uid) == (os.makedev(1, 3), 1000)


def test_bad_creations(storage: Storage) -> None:
    root = storage.root().handle
    with raises(errno.EPERM):
        storage.mknod(root, b"x", stat.S_IFDIR | 0o755, 0, ME)
    with raises(errno.EINVAL):
        storage.mknod(root, b"x", stat.S_IFLNK | 0o755, 0, ME)
    with raises(errno.EINVAL):
        storage.mkdir(root, b"x", 0o755, Credentials(2**32 - 1, 0))
    with raises(errno.EINVAL):
        storage.create(root, b"x", 0o644, Credentials(0, -1))
    assert names(storage, root) == set()


def test_listing_in_pieces(storage: Storage) -> None:
    root = storage.root().handle
    handles = {b"%d" % number: make(storage, b"%d" % number).handle for number in range(100)}
    handles[b"dir"] = storage.mkdir(root, b"dir", 0o755, ME).handle
    for limit in (1, 7, 1000):
        entries = listing(storage, root, limit)
        assert {entry.name: entry.handle for entry in entries} == handles
        assert len(entries) == len(handles)
    for cookie, limit in ((-1, 1), (0, 0), (2**63, 1)):
        with raises(errno.EINVAL):
            storage.readdir(root, cookie, limit)


def test_a_listing_goes_on_while_the_directory_changes(storage: Storage) -> None:
    root = storage.root().handle
    for number in range(200):
        make(storage, b"stays%d" % number)
        make(storage, b"goes%d" % number)
    seen: list[bytes] = []
    cookie, eof, step = 0, False, 0
    while not eof:
        entries, eof = storage.readdir(root, cookie, 13)
        seen += [entry.name for entry in entries]
        cookie = entries[-1].cookie if entries else cookie
        for number in range(step * 10, min(step * 10 + 10, 200)):
            storage.unlink(root, b"goes%d" % number)
            make(storage, b"new%d" % number)
        step += 1
    stayed = [name for name in seen if name.startswith(b"stays")]
    assert len(stayed) == len(set(stayed)) == 200
    assert len(seen) == len(set(seen))


def test_two_listings_of_one_directory_do_not_disturb_each_other(storage: Storage) -> None:
    root = storage.root().handle
    expected = {b"%d" % number for number in range(300)}
    for name in expected:
        make(storage, name)
    results: list[set[bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(names(storage, root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def searched(storage: Storage, number: int) -> InodeHandle | None:
    """What a search comes to."""
    steps = list(storage.search(number))
    assert not any(steps[:-1])
    return steps[-1].handle if steps and steps[-1] else None


def test_inodes_are_found_by_their_numbers(storage: Storage) -> None:
    root = storage.root()
    assert searched(storage, root.attributes.ino) == root.handle
    made = [storage.mkdir(root.handle, b"d%d" % number, 0o755, ME) for number in range(5)]
    made += [storage.mkdir(made[3].handle, b"deep", 0o755, ME)]
    made += [storage.create(made[5].handle, b"file", 0o644, ME)]
    made += [storage.symlink(made[5].handle, b"link", b"file", ME)]
    for node in made:
        assert searched(storage, node.attributes.ino) == node.handle
    nameless = storage.tmpfile(root.handle, 0o600, ME)
    storage.pin(nameless.handle)
    for number in (nameless.attributes.ino, 2**63 - 1):
        assert searched(storage, number) is None
    storage.unpin(nameless.handle)


def test_the_directory_above(storage: Storage) -> None:
    root = storage.root()
    first = storage.mkdir(root.handle, b"first", 0o755, ME)
    second = storage.mkdir(first.handle, b"second", 0o755, ME)
    for below, above in ((second, first), (first, root), (root, root)):
        assert storage.parent(below.handle).handle == above.handle
        storage.readdir(below.handle, 0, 1)
        number = 0 if below is root else above.attributes.ino
        assert storage.number_above(below.handle) == number
    with raises(errno.ENOTDIR):
        storage.parent(storage.create(root.handle, b"file", 0o644, ME).handle)
    storage.pin(second.handle)
    storage.rmdir(first.handle, b"second")
    with raises(errno.ESTALE):
        storage.parent(second.handle)
    storage.unpin(second.handle)
