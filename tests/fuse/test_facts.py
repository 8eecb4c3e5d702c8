"""Each request's facts reach its handler."""

from __future__ import annotations

import os

import pytest

from tests.fuse.toymount import Mounter

PAGE = 4096
FSYNC_FDATASYNC = 1
RELEASE_FLOCK_UNLOCK = 2
FATTR_FH = 1 << 6
FATTR_LOCKOWNER = 1 << 9


def test_write_back_of_a_mapping_is_told_from_write(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", bytes(2 * PAGE))
    daemon.run(
        "fd=os.open(path,os.O_RDWR|os.O_APPEND)\n"
        "os.pwrite(fd,b'w',10)\n"
        "m=mmap.mmap(fd,0)\n"
        "m[4096]=1\n"
        "m.flush()\n",
        "f",
    )
    write, write_back = daemon.facts("write")
    assert not write["is_write_back"]
    assert write["size"] == 1
    assert write["flags"] & os.O_APPEND
    assert write_back["is_write_back"]
    assert (write_back["offset"], write_back["size"]) == (PAGE, PAGE)
    assert write_back["pid"] == 0


def test_who_asks(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    (pid,) = daemon.run("os.stat(path); say(os.getpid())", "f")
    (lookup,) = daemon.facts("lookup")
    assert (lookup["pid"], lookup["uid"], lookup["gid"]) == (pid, os.getuid(), os.getgid())


def test_open_and_read_carry_flags_and_handle(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"12345678")
    daemon.run("fd=os.open(path,os.O_RDONLY|os.O_NOATIME); os.read(fd,4)", "f")
    journal = {entry["operation"]: entry["facts"] for entry in daemon.ask("journal")}
    assert journal["open"]["flags"] & os.O_NOATIME
    assert journal["read"]["flags"] & os.O_NOATIME
    assert journal["read"]["fh"] == ino + 1000
    assert journal["read"]["nodeid"] == ino
    assert journal["lookup"]["fh"] is None


def test_flush_names_the_owner_of_the_posix_locks(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,fcntl.LOCK_EX); os.close(fd)", "f")
    journal = daemon.ask("journal")
    (lock,) = [e for e in journal if e["operation"] == "setlk"]
    (flush,) = [e["facts"] for e in journal if e["operation"] == "flush"]
    assert flush["lock_owner"] == lock["owner"]
    assert daemon.ask("status")["locks"] == 0


def test_release_names_the_owner_of_the_flock(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_RDWR); fcntl.flock(fd,fcntl.LOCK_EX); os.close(fd)", "f")
    daemon.await_journal("release")
    journal = daemon.ask("journal")
    (lock,) = [e for e in journal if e["operation"] == "setlk"]
    (released,) = [e["facts"] for e in journal if e["operation"] == "release"]
    assert released["lock_owner"] == lock["owner"]
    assert released["operation_flags"] & RELEASE_FLOCK_UNLOCK


def test_fsync_and_fdatasync(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_RDWR); os.fsync(fd); os.fdatasync(fd)", "f")
    fsync, fdatasync = daemon.facts("fsync")
    assert not fsync["operation_flags"] & FSYNC_FDATASYNC
    assert fdatasync["operation_flags"] & FSYNC_FDATASYNC


def test_setattr_through_a_descriptor_has_its_handle(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_RDWR); os.ftruncate(fd,5); os.chmod(path,0o600)", "f")
    ftruncate, chmod = daemon.facts("setattr")
    assert ftruncate["valid"] & FATTR_FH
    assert ftruncate["fh"] == ino + 1000
    assert ftruncate["valid"] & FATTR_LOCKOWNER
    assert ftruncate["lock_owner"] is not None
    assert chmod["fh"] is None
    assert chmod["lock_owner"] is None


def test_the_kernel_asks_us_to_clear_setuid(toy: Mounter) -> None:
    """FUSE_HANDLE_KILLPRIV_V2: with the WRITE of an unprivileged writer, instead of a SETATTR before it."""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.path.joinpath("f").chmod(0o6777)
    daemon.ask("journal")
    daemon.run(
        "fd=os.open(path,os.O_RDWR); os.write(fd,b'r'); os.setresuid(1000,1000,1000); os.write(fd,b'u')", "f"
    )
    assert [facts["kill_suidgid"] for facts in daemon.facts("write")] == [False, True]


APPEND = "fd=os.open(path,os.O_WRONLY|os.O_APPEND); os.write(fd,b'r'*100)"


def test_an_append_across_a_page_that_is_not_cached_comes_in_two(toy: Mounter) -> None:
    """fs/fuse/file.c, fuse_fill_write_pages: a request ends at a page it makes partly up to date. So the
    kernel's O_APPEND is not one request, and the second part's offset is the kernel's own reckoning."""
    daemon = toy()
    daemon.put("f", bytes(PAGE - 46))
    daemon.run(APPEND, "f")
    parts = [(facts["offset"], facts["size"]) for facts in daemon.facts("write")]
    assert parts == [(PAGE - 46, 46), (PAGE, 54)]


def test_a_direct_append_comes_whole(toy: Mounter) -> None:
    daemon = toy(direct_append=True)
    daemon.put("f", bytes(PAGE - 46))
    daemon.run(APPEND, "f")
    (write,) = daemon.facts("write")
    assert (write["offset"], write["size"]) == (PAGE - 46, 100)
    assert write["flags"] & os.O_APPEND


GETATTR_FH = 1


@pytest.mark.parametrize("program", ["fd=os.open(path,os.O_RDWR); os.fstat(fd)", "os.stat(path)"])
def test_a_programs_stat_has_no_handle(toy: Mounter, program: str) -> None:
    daemon = toy(timeout=0.0)
    daemon.put("f", b"12345678")
    daemon.run(program, "f")
    asked = daemon.facts("getattr")
    assert asked
    assert not any(facts["operation_flags"] & GETATTR_FH for facts in asked)


@pytest.mark.parametrize(
    "program",
    [
        "fd=os.open(path,os.O_RDWR); os.lseek(fd,0,os.SEEK_END)",
        "fd=os.open(path,os.O_RDONLY); os.pread(fd,100,4)",
    ],
)
def test_the_kernels_own_question_for_a_size_has_a_handle(toy: Mounter, program: str) -> None:
    daemon = toy(timeout=0.0)
    daemon.put("f", b"12345678")
    daemon.run(program, "f")
    assert daemon.facts("getattr")[-1]["operation_flags"] & GETATTR_FH
