"""What every storage does with inodes that lose their last name while somebody has them open."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AttributeChanges,
    Credentials,
    InodeHandle,
)
from nfsfuse_server.storage.interface import ORPHANS_NAME, Storage
from tests.server.storage.conftest import Restartable

ME = Credentials(0, 0)


@contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno == number, caught.value


def make(storage: Storage, name: bytes, content: bytes = b"content") -> InodeHandle:
    node = storage.create(storage.root().handle, name, 0o644, ME)
    storage.write(node.handle, 0, content)
    return node.handle


def names(storage: Storage) -> set[bytes]:
    return {entry.name for entry in storage.readdir(storage.root().handle, 0, 100)[0]}


def unlink(storage: Storage) -> None:
    storage.unlink(storage.root().handle, b"file")


def overwrite(storage: Storage) -> None:
    root = storage.root().handle
    make(storage, b"new")
    storage.rename(root, b"new", root, b"file", 0)


@pytest.mark.parametrize("remove", [unlink, overwrite])
def test_an_open_file_without_a_name_outlives_the_server(
    server: Restartable, remove: Callable[[Storage], None]
) -> None:
    storage = server.storage
    file = make(storage, b"file")
    storage.pin(file)
    assert storage.orphans() == []
    remove(storage)
    assert storage.orphans() == [file]
    storage = server.restart()
    assert storage.orphans() == [file]
    assert storage.getattr(file).nlink == 0
    storage.pin(file)
    assert storage.read(file, 0, 100) == b"content"
    assert storage.write(file, 7, b" and more").nlink == 0
    assert storage.setattr(file, AttributeChanges(mode=0o600)).nlink == 0
    with raises(errno.ENOENT):
        storage.link(file, storage.root().handle, b"resurrected")
    storage.sweep()
    assert storage.read(file, 0, 100) == b"content and more", "somebody has claimed it"
    storage.unpin(file)
    assert storage.orphans() == []
    with raises(errno.ESTALE):
        storage.getattr(file)


def test_what_nobody_claims_is_swept(server: Restartable) -> None:
    root = server.storage.root().handle
    files = [make(server.storage, b"%d" % number) for number in range(5)]
    for number, file in enumerate(files):
        server.storage.pin(file)
        server.storage.unlink(root, b"%d" % number)
    storage = server.restart()
    assert sorted(storage.orphans()) == sorted(files)
    storage.pin(files[2])
    storage.sweep()
    assert storage.orphans() == [files[2]]
    storage.unpin(files[2])
    server.check()
    for file in files:
        with raises(errno.ESTALE):
            storage.getattr(file)


def test_a_file_that_has_other_names_is_no_orphan(server: Restartable) -> None:
    storage = server.storage
    root = storage.root().handle
    file = make(storage, b"file")
    storage.link(file, root, b"second")
    storage.pin(file)
    assert storage.unlink(root, b"file").attributes.nlink == 1
    assert storage.orphans() == []
    storage.unpin(file)
    assert storage.lookup(root, b"second").handle == file


def test_what_nobody_has_open_is_no_orphan(server: Restartable) -> None:
    make(server.storage, b"file")
    unlink(server.storage)
    make(server.storage, b"file")
    overwrite(server.storage)
    assert server.storage.orphans() == []


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, RENAME_NOREPLACE])
def test_a_rename_that_overwrites_nothing_makes_no_orphan(server: Restartable, flags: int) -> None:
    storage = server.storage
    root = storage.root().handle
    for name in (b"a", b"b"):
        storage.pin(make(storage, name))
    if flags == RENAME_NOREPLACE:
        with raises(errno.EEXIST):
            storage.rename(root, b"a", root, b"b", flags)
    else:
        storage.rename(root, b"a", root, b"b", flags)
    assert storage.orphans() == []


def test_a_rename_that_fails_makes_no_orphan(server: Restartable) -> None:
    storage = server.storage
    root = storage.root().handle
    file = make(storage, b"file")
    storage.pin(file)
    storage.mkdir(root, b"directory", 0o755, ME)
    with raises(errno.ENOTDIR):
        storage.rename(root, b"directory", root, b"file", 0)
    assert storage.orphans() == []
    assert storage.getattr(file).nlink == 1


def test_links_of_other_kinds_are_kept_as_well(server: Restartable) -> None:
    storage = server.storage
    root = storage.root().handle
    link = storage.symlink(root, b"link", b"nowhere", ME).handle
    storage.pin(link)
    storage.unlink(root, b"link")
    assert server.restart().readlink(link) == b"nowhere"


def test_a_removed_directory_is_gone_with_the_server(server: Restartable) -> None:
    """There is nothing in it to lose."""
    storage = server.storage
    root = storage.root().handle
    directory = storage.mkdir(root, b"directory", 0o755, ME).handle
    storage.pin(directory)
    storage.rmdir(root, b"directory")
    assert storage.getattr(directory).nlink == 0
    storage = server.restart()
    assert storage.orphans() == []
    with raises(errno.ESTALE):
        storage.getattr(directory)


def test_the_place_of_orphans_is_invisible_and_its_name_reserved(storage: Storage) -> None:
    root = storage.root().handle
    file = make(storage, b"file")
    directory = storage.mkdir(root, b"directory", 0o755, ME).handle
    name = ORPHANS_NAME
    for forbidden in (
        lambda: storage.create(root, name, 0o644, ME),
        lambda: storage.mkdir(root, name, 0o755, ME),
        lambda: storage.mknod(root, name, 0o644, 0, ME),
        lambda: storage.symlink(root, name, b"x", ME),
        lambda: storage.link(file, root, name),
        lambda: storage.rename(root, b"file", root, name, 0),
        lambda: storage.rename(directory, b"absent", root, name, RENAME_EXCHANGE),
    ):
        with raises(errno.EPERM):
            forbidden()
    for absent in (
        lambda: storage.lookup(root, name),
        lambda: storage.unlink(root, name),
        lambda: storage.rmdir(root, name),
        lambda: storage.rename(root, name, root, b"x", 0),
    ):
        with raises(errno.ENOENT):
            absent()
    assert names(storage) == {b"file", b"directory"}
    assert storage.getattr(root).nlink == storage.root().attributes.nlink == 3
    assert storage.mkdir(directory, name, 0o755, ME).attributes.nlink == 2, "elsewhere it is a name"


def test_orphans_do_not_show_in_listings_or_link_counts(server: Restartable) -> None:
    storage = server.storage
    root = storage.root()
    for _ in range(3):
        storage.pin(make(storage, b"file"))
        unlink(storage)
    assert len(storage.orphans()) == 3
    assert names(storage) == set()
    assert storage.getattr(root.handle).nlink == root.attributes.nlink


def test_a_file_without_a_name_can_be_given_one_once(storage: Storage) -> None:
    root = storage.root().handle
    node = storage.tmpfile(root, 0o640, ME)
    file = node.handle
    storage.pin(file)
    assert (node.attributes.nlink, node.attributes.mode) == (0, 0o100640)
    assert names(storage) == set()
    assert storage.orphans() == [file]
    storage.write(file, 0, b"content")
    storage.link(file, root, b"file")
    assert storage.lookup(root, b"file").handle == file
    assert storage.getattr(file).nlink == 1
    storage.unlink(root, b"file")
    with raises(errno.ENOENT):
        storage.link(file, root, b"again")
    assert storage.read(file, 0, 100) == b"content"
    storage.unpin(file)
    assert storage.orphans() == []
    with raises(errno.ESTALE):
        storage.getattr(file)


def test_a_name_that_it_was_given_stays_when_it_is_closed(storage: Storage) -> None:
    root = storage.root().handle
    file = storage.tmpfile(root, 0o600, ME).handle
    storage.pin(file)
    storage.link(file, root, b"file")
    storage.unpin(file)
    assert storage.orphans() == []
    assert storage.lookup(root, b"file").handle == file
    assert storage.getattr(file).nlink == 1


def test_a_file_without_a_name_outlives_the_server_and_can_then_be_named(server: Restartable) -> None:
    root = server.storage.root().handle
    claimed, lost = (server.storage.tmpfile(root, 0o600, ME).handle for _ in range(2))
    for file in (claimed, lost):
        server.storage.pin(file)
        server.storage.write(file, 0, b"content")
    storage = server.restart()
    storage.pin(claimed)
    storage.sweep()
    assert storage.orphans() == [claimed]
    with raises(errno.ESTALE):
        storage.getattr(lost)
    storage.link(claimed, root, b"file")
    storage = server.restart()
    storage.sweep()
    assert storage.orphans() == []
    assert storage.read(storage.lookup(root, b"file").handle, 0, 100) == b"content"
    assert storage.getattr(claimed).nlink == 1


def test_a_file_without_a_name_belongs_where_it_was_made(storage: Storage) -> None:
    root = storage.root().handle
    directory = storage.mkdir(root, b"d", 0o755, ME).handle
    storage.setattr(directory, AttributeChanges(mode=0o2755))
    assert storage.tmpfile(directory, 0o600, ME).attributes.gid == storage.getattr(directory).gid
    with raises(errno.ENOTDIR):
        storage.tmpfile(make(storage, b"file"), 0o600, ME)


def test_the_umask_takes_bits_from_a_nameless_file(storage: Storage) -> None:
    node = storage.tmpfile(storage.root().handle, 0o666, replace(ME, umask=0o027))
    assert stat.S_IMODE(node.attributes.mode) == 0o640
