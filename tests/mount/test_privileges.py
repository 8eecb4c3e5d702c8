"""What a change takes from a file - set-user-ID, set-group-ID, capabilities - and what it leaves; on all
clients at once (promise 2)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.acl import as_user
from tests.mount.conftest import Mounts, Pair

USER, GROUP = 1, 5

CAPABILITY: Final = "security.capability"
NET_RAW: Final = bytes.fromhex("0100000200200000000000000000000000000000")
"""A struct vfs_cap_data: CAP_NET_RAW, effective and permitted."""

SIZE: Final = 64 << 10

Act = Callable[[int], object]

ACTS: Final[Mapping[str, Act]] = {
    "write": lambda descriptor: os.pwrite(descriptor, b"x", 0),
    "extending write": lambda descriptor: os.pwrite(descriptor, b"x", 2 * SIZE),
    "truncation": lambda descriptor: os.ftruncate(descriptor, 1),
    "allocation": lambda descriptor: os.posix_fallocate(descriptor, 0, 2 * SIZE),
    "copy": lambda descriptor: os.copy_file_range(descriptor, descriptor, 4096, 0, SIZE),
}

MODES: Final = [
    (0o6666, 0o666, 0o2666), (0o6676, 0o676, 0o676), (0o6766, 0o766, 0o2766), (0o6777, 0o777, 0o777),
    (0o2676, 0o676, 0o676), (0o2666, 0o666, 0o2666), (0o4666, 0o666, 0o666), (0o1666, 0o1666, 0o1666),
]  # fmt: skip
"""A mode; what a stranger leaves of it, and a member of the group (`setattr_should_drop_suidgid` in Linux)."""


@pytest.fixture(autouse=True)
def for_everybody(mounts: Mounts, pair: Pair) -> None:
    """Other users get to the mounts, and may make files there."""
    mounts.rig.directory.chmod(0o755)
    pair.export.chmod(0o777)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def capability(path: Path) -> bytes | None:
    """None: there is none."""
    try:
        return os.getxattr(path, CAPABILITY)
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return None


def make(path: Path, bits: int) -> None:
    path.write_bytes(b"y" * SIZE)
    os.chown(path, 0, GROUP)
    path.chmod(bits)


def does(path: Path, act: Act, flags: int = os.O_RDWR) -> Callable[[], None]:
    def opened() -> None:
        descriptor = os.open(path, flags)
        try:
            act(descriptor)
        finally:
            os.close(descriptor)

    return opened


@pytest.mark.parametrize("name", ACTS)
def test_a_user_takes_set_id_away_and_root_leaves_it(pair: Pair, name: str) -> None:
    for number, (before, stranger, member) in enumerate(MODES):
        for side, other in ((pair.one, pair.two), (pair.two, pair.one)):
            file = side / f"{number}-{side.parent.name}"
            for uid, gid, after in ((USER, USER, stranger), (USER, GROUP, member), (0, 0, before)):
                make(file, before)
                assert mode(other / file.name) == before
                assert as_user(uid, gid, does(file, ACTS[name])) == 0
                seen = (mode(other / file.name), mode(file))
                assert seen == (after, after), f"{before:o}, {uid}:{gid}"


def test_a_file_that_creat_makes_keeps_its_set_group_id_and_one_that_it_finds_does_not(pair: Pair) -> None:
    """O_TRUNC is a change by who may not leave it so, of what was there before."""
    directory = pair.one / "directory"
    directory.mkdir()
    os.chown(directory, USER, GROUP)
    directory.chmod(0o2777)
    new, old = directory / "new", directory / "old"

    def creates(path: Path) -> Callable[[], None]:
        return lambda: os.close(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o2755))

    umask = os.umask(0)
    try:
        assert as_user(USER, GROUP, creates(new)) == 0
        make(old, 0o6777)
        assert as_user(USER, GROUP, creates(old)) == 0
    finally:
        os.umask(umask)
    for side in (pair.one, pair.two):
        assert mode(side / "directory" / "new") == 0o2755
        assert mode(side / "directory" / "old") == 0o777


def test_what_is_set_after_a_write_stays_when_that_is_written_back(pair: Pair) -> None:
    file = pair.one / "file"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o755)
    try:
        os.write(descriptor, b"#!program\n" * 99)
        os.setxattr(descriptor, CAPABILITY, NET_RAW)
        os.fchmod(descriptor, 0o4755)
        assert capability(pair.two / "file") == NET_RAW
    finally:
        os.close(descriptor)
    for path in (file, pair.two / "file", pair.export / "file"):
        assert (capability(path), mode(path)) == (NET_RAW, 0o4755), path


def test_what_is_set_elsewhere_after_a_write_stays_too(pair: Pair) -> None:
    """The bytes that one client has written go to the server before the other is answered."""
    make(pair.one / "file", 0o755)
    descriptor, elsewhere = (os.open(side / "file", os.O_RDWR) for side in (pair.one, pair.two))
    try:
        os.pread(elsewhere, 1, 0)
        os.pwrite(descriptor, b"x", SIZE // 2)
        os.setxattr(elsewhere, CAPABILITY, NET_RAW)
    finally:
        os.close(descriptor)
        os.close(elsewhere)
    for path in (pair.one / "file", pair.two / "file", pair.export / "file"):
        assert capability(path) == NET_RAW, path


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("uid", [0, USER])
def test_a_write_takes_capabilities_away_at_once(pair: Pair, name: str, uid: int) -> None:
    """Whoever writes (`cap_inode_need_killpriv`)."""
    for side, other in ((pair.one, pair.two), (pair.two, pair.one)):
        file = side / f"file-{side.parent.name}"
        make(file, 0o777)
        os.setxattr(file, CAPABILITY, NET_RAW)
        assert capability(other / file.name) == NET_RAW

        def acts(descriptor: int) -> None:
            ACTS[name](descriptor)
            assert capability(other / file.name) is None  # noqa: B023 - it runs in this turn of the loop
            assert capability(file) is None  # noqa: B023

        assert as_user(uid, uid, does(file, acts)) == 0
        assert capability(pair.export / file.name) is None


def test_a_change_of_owner_takes_all_of_it_away(pair: Pair) -> None:
    make(pair.one / "file", 0o6775)
    os.setxattr(pair.one / "file", CAPABILITY, NET_RAW)
    assert capability(pair.two / "file") == NET_RAW
    os.chown(pair.one / "file", USER, GROUP)
    for side in (pair.one, pair.two):
        assert (capability(side / "file"), mode(side / "file")) == (None, 0o775)


def test_trusted_attributes_are_told_to_root_alone(pair: Pair) -> None:
    file = pair.one / "file"
    make(file, 0o666)
    os.setxattr(file, "trusted.secret", b"1")
    os.setxattr(file, "user.known", b"1")
    assert sorted(os.listxattr(pair.two / "file")) == ["trusted.secret", "user.known"]

    def lists() -> None:
        for side in (pair.one, pair.two):
            assert os.listxattr(side / "file") == ["user.known"]

    assert as_user(USER, USER, lists) == 0
