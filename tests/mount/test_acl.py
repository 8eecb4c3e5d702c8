"""POSIX ACLs are obeyed, on all clients at once (promise 2); default ACLs take the place of the umask."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.proof.counts import counts
from scripts.rig.rig import Rig
from tests.helpers.acl import ACCESS, DEFAULT, as_user, packed, unpacked
from tests.mount.conftest import TEST_SECONDS_MAX, Mounts, Pair

USER, STRANGER, GROUP = 1, 7, 5

EVERYBODY = "u::rwx,g::rwx,o::rwx"

ROUNDS = 30


@pytest.fixture(autouse=True)
def for_everybody(mounts: Mounts) -> None:
    """Other users get to the mounts."""
    mounts.rig.directory.chmod(0o755)


@pytest.fixture(params=["here", "elsewhere"])
def sides(pair: Pair, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Where a test changes something, and where it looks."""
    pair.export.chmod(0o755)
    return (pair.one, pair.one) if request.param == "here" else (pair.one, pair.two)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def reads(path: Path) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_RDONLY))


def writes(path: Path) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_WRONLY))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def make(path: Path, bits: int, acl: str | None = None, group: int = 0) -> None:
    path.write_text("secret")
    os.chown(path, 0, group)
    path.chmod(bits)
    if acl is not None:
        os.setxattr(path, ACCESS, packed(acl))


# --- access ---


def test_an_acl_lets_in_and_keeps_out(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "file", sides[1] / "file"
    make(here, 0o600, f"u::rw-,u:{USER}:r--,g::---,m::r--,o::---")
    assert mode(there) == 0o640, "the mask is what stat tells of the group"
    assert unpacked(os.getxattr(there, ACCESS)) == f"u::rw-,u:{USER}:r--,g::---,m::r--,o::---"
    assert as_user(USER, USER, reads(there)) == 0
    assert as_user(USER, USER, writes(there)) == errno.EACCES
    assert as_user(STRANGER, STRANGER, reads(there)) == errno.EACCES


def test_the_mode_alone_would_let_in_whom_the_acl_denies(sides: tuple[Path, Path]) -> None:
    here, there = sides[0], sides[1]
    make(here / "user", 0o644, f"u::rw-,u:{USER}:---,g::r--,m::r--,o::r--")
    make(here / "group", 0o660, f"u::rw-,u:{USER}:rw-,g::---,m::rw-,o::---", GROUP)
    assert as_user(USER, USER, reads(there / "user")) == errno.EACCES
    assert as_user(STRANGER, STRANGER, reads(there / "user")) == 0
    assert mode(there / "group") == 0o660
    assert as_user(STRANGER, GROUP, reads(there / "group")) == errno.EACCES
    assert as_user(USER, USER, writes(there / "group")) == 0
    assert as_user(STRANGER, STRANGER, reads(there / "group"), groups=(GROUP,)) == errno.EACCES


def test_an_acl_of_a_directory_lets_make_and_pass(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "directory", sides[1] / "directory"
    here.mkdir(0o700)
    make(here / "file", 0o644)
    assert as_user(USER, USER, reads(there / "file")) == errno.EACCES
    os.setxattr(here, ACCESS, packed(f"u::rwx,u:{USER}:rwx,g::---,m::rwx,o::---"))
    assert as_user(USER, USER, reads(there / "file")) == 0
    assert as_user(USER, USER, lambda: (there / "new").mkdir()) == 0
    assert as_user(STRANGER, STRANGER, reads(there / "file")) == errno.EACCES


def test_what_is_changed_elsewhere_is_obeyed_at_once(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "file", sides[1] / "file"
    make(here, 0o600)
    for number in range(ROUNDS):
        changed, seen = (here, there) if number % 2 else (there, here)
        os.setxattr(changed, ACCESS, packed(f"u::rw-,u:{USER}:rw-,g::---,m::rw-,o::---"))
        assert as_user(USER, USER, writes(seen)) == 0
        assert as_user(USER, USER, writes(changed)) == 0
        match number % 3:
            case 0:
                os.setxattr(changed, ACCESS, packed(f"u::rw-,u:{USER}:r--,g::---,m::r--,o::---"))
            case 1:
                os.removexattr(changed, ACCESS)
            case _:
                changed.chmod(0o640)  # of the mask
        assert as_user(USER, USER, writes(seen)) == errno.EACCES, number
        assert as_user(USER, USER, writes(changed)) == errno.EACCES, number


def test_chmod_sets_the_mask_and_without_an_acl_the_mode_is_left(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "file", sides[1] / "file"
    make(here, 0o600, f"u::rw-,u:{USER}:rw-,g::r--,m::rw-,o::---")
    here.chmod(0o640)
    assert unpacked(os.getxattr(there, ACCESS)) == f"u::rw-,u:{USER}:rw-,g::r--,m::r--,o::---"
    os.setxattr(here, ACCESS, packed("u::rw-,g::r--,o::---"))  # nothing that a mode cannot say
    assert mode(there) == 0o640
    with pytest.raises(OSError) as none:  # noqa: PT011
        os.getxattr(there, ACCESS)
    assert none.value.errno == errno.ENODATA


def test_copies_keep_it(pair: Pair) -> None:
    acl = f"u::rw-,u:{USER}:rw-,g::r--,m::rw-,o::---"
    make(pair.one / "file", 0o600, acl)
    commands = [["cp", "-a"]] + ([["rsync", "-aA"]] if shutil.which("rsync") else [])
    for number, command in enumerate(commands):
        subprocess.run([*command, pair.one / "file", pair.one / f"copy-{number}"], check=True)
        assert unpacked(os.getxattr(pair.two / f"copy-{number}", ACCESS)) == acl, command
        assert mode(pair.two / f"copy-{number}") == 0o660


# --- default ACLs and the umask ---


def test_a_default_acl_takes_the_place_of_the_umask(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "directory", sides[1] / "directory"
    here.mkdir()
    with umask(0o027):
        for number in range(ROUNDS // 3):
            os.setxattr(here, DEFAULT, packed(EVERYBODY))
            with open(there / f"file-{number}", "w"):
                pass
            (there / f"directory-{number}").mkdir()
            os.mkfifo(there / f"fifo-{number}")
            made = [mode(here / f"{name}-{number}") for name in ("file", "directory", "fifo")]
            assert made == [0o666, 0o777, 0o666]
            assert unpacked(os.getxattr(here / f"directory-{number}", DEFAULT)) == EVERYBODY
            os.removexattr(here, DEFAULT)
            (there / f"plain-{number}").touch()
            (there / f"plain-directory-{number}").mkdir()
            assert mode(here / f"plain-{number}") == 0o640
            assert mode(here / f"plain-directory-{number}") == 0o750


def test_what_is_inherited_is_obeyed(sides: tuple[Path, Path]) -> None:
    here, there = sides[0] / "directory", sides[1] / "directory"
    here.mkdir()
    os.setxattr(here, DEFAULT, packed(f"u::rwx,u:{USER}:r-x,g::---,m::r-x,o::---"))
    make(here / "file", 0o640)
    assert as_user(USER, USER, reads(there / "file")) == 0
    assert as_user(USER, USER, writes(there / "file")) == errno.EACCES
    assert as_user(STRANGER, STRANGER, reads(there / "file")) == errno.EACCES


# --- set-group-ID ---


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_acl_set_by_somebody_not_in_the_group_clears_set_group_id(
    sides: tuple[Path, Path], kind: str
) -> None:
    here, there = sides[0] / "sgid", sides[1] / "sgid"
    here.touch() if kind == "file" else here.mkdir()
    os.chown(here, USER, GROUP)

    def sets() -> None:
        os.setxattr(here, ACCESS, packed(EVERYBODY))

    for groups, expected in (((GROUP,), 0o2777), ((), 0o777)):
        here.chmod(0o2755)
        assert as_user(USER, USER, sets, groups=groups) == 0
        assert mode(there) == expected, groups
    here.chmod(0o2755)
    sets()  # as root
    assert mode(there) == 0o2777


# --- what it costs, and where there is none ---


def test_checking_permissions_costs_no_round_trip(mounts: Mounts, pair: Pair) -> None:
    """Of what was listed or looked up it is known that there is no ACL."""
    pair.export.chmod(0o755)
    for number in range(ROUNDS):
        (pair.export / f"d{number}").mkdir()
        (pair.export / f"d{number}" / "file").write_text("x")

    def walks() -> None:
        # Not by the mount's root, whose ACL the kernel asks for each time (docs/coherence.md).
        os.chdir(pair.one)
        for number in range(ROUNDS):
            os.listdir(f"d{number}")
            reads(Path(f"d{number}", "file"))()

    before = counts(mounts.rig, pair.one.parent)
    assert as_user(USER, USER, walks) == 0
    done = counts(mounts.rig, pair.one.parent) - before
    assert done.upcalls["getxattr"] > 0, "the kernel does not ask"
    assert done.requests["GetXattr"] == 0, done
    assert as_user(USER, USER, walks) == 0  # the kernel doubts the atime of what it has listed
    before = counts(mounts.rig, pair.one.parent)
    assert as_user(USER, USER, walks) == 0
    again = counts(mounts.rig, pair.one.parent) - before
    assert again.upcalls["getxattr"] <= ROUNDS // 4, again  # it keeps what it was told


def test_where_the_server_has_none_they_are_refused_and_the_mode_counts(rig: Rig) -> None:
    rig.directory.chmod(0o755)
    export = rig.directory / "export"
    export.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", os.fsencode(export), b"ramfs", 0, None) == 0, os.strerror(ctypes.get_errno())
    try:
        mount = rig.mount(rig.server(export, arguments=["--volatile-handles"]))
        with umask(0o022):
            (mount / "file").write_text("x")
        for name in (ACCESS, DEFAULT):
            with pytest.raises(OSError) as refused:  # noqa: PT011
                os.setxattr(mount / "file" if name == ACCESS else mount, name, packed(EVERYBODY))
            assert refused.value.errno == errno.EOPNOTSUPP
        assert mode(mount / "file") == 0o644
        assert as_user(USER, USER, reads(mount / "file")) == 0
        assert as_user(USER, USER, writes(mount / "file")) == errno.EACCES
    finally:
        libc.umount2(os.fsencode(export), 2)


def test_with_noacl_they_are_refused_and_the_mode_counts(rig: Rig) -> None:
    rig.directory.chmod(0o755)
    server = rig.server()
    with_acls, without = rig.mount(server), rig.mount(server, "noacl")
    make(with_acls / "file", 0o600, f"u::rw-,u:{USER}:r--,g::---,m::r--,o::---")
    for refused in (
        lambda: os.getxattr(without / "file", ACCESS),
        lambda: os.setxattr(without / "file", ACCESS, packed(EVERYBODY)),
        lambda: os.removexattr(without / "file", ACCESS),
        lambda: os.setxattr(without, DEFAULT, packed(EVERYBODY)),
    ):
        with pytest.raises(OSError) as told:  # noqa: PT011
            refused()
        assert told.value.errno == errno.EOPNOTSUPP
    assert os.listxattr(without / "file") == []
    assert os.listxattr(with_acls / "file") == [ACCESS]
    assert mode(without / "file") == 0o640
    assert as_user(USER, USER, reads(without / "file")) == errno.EACCES
    assert as_user(USER, USER, reads(with_acls / "file")) == 0


def test_where_nobody_checks_permissions_acls_are_kept_and_not_obeyed(rig: Rig) -> None:
    """As modes are, with nodefault_permissions; default ACLs are the server's."""
    rig.deadline(TEST_SECONDS_MAX)
    rig.directory.chmod(0o755)
    server = rig.server()
    checked, unchecked = rig.mount(server), rig.mount(server, "nodefault_permissions")
    make(unchecked / "file", 0o600, f"u::rw-,u:{USER}:---,g::---,m::---,o::---")
    os.setxattr(unchecked, DEFAULT, packed(EVERYBODY))
    with umask(0o077):
        (unchecked / "new").touch()
    assert mode(checked / "new") == 0o666
    assert as_user(USER, USER, reads(unchecked / "file")) == 0
    assert as_user(USER, USER, reads(checked / "file")) == errno.EACCES
