"""The operations that pyfuse3 lacks arrive in Python with their arguments, and the answers arrive back."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from tests.fuse.toymount import Mounter

OFFSET_MAX = 2**63 - 1
F_OFD_SETLKW = 38
KEEP_SIZE = 1


def test_posix_lock(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"x")
    (pid,) = daemon.run(
        "fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,fcntl.LOCK_SH|fcntl.LOCK_NB,10,100)\n"
        "fcntl.lockf(fd,fcntl.LOCK_UN); say(os.getpid())",
        "f",
    )
    lock, unlock = [e for e in daemon.ask("journal") if e["operation"] == "setlk"]
    assert (lock["start"], lock["end"], lock["type"]) == (100, 109, fcntl.F_RDLCK)
    assert (lock["pid"], lock["is_flock"], lock["wait"]) == (pid, False, False)
    assert lock["through"] == ino + 1000
    assert (unlock["start"], unlock["end"], unlock["type"]) == (0, OFFSET_MAX, fcntl.F_UNLCK)
    assert unlock["owner"] == lock["owner"]


def test_flock(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_RDWR); fcntl.flock(fd,fcntl.LOCK_EX)", "f")
    (lock,) = daemon.ask("journal", operation="setlk")
    assert lock["is_flock"]
    assert lock["wait"]
    assert (lock["start"], lock["end"], lock["type"]) == (0, OFFSET_MAX, fcntl.F_WRLCK)


def test_ofd_lock_ends_with_a_release_that_does_not_tell(toy: Mounter) -> None:
    """The kernel sends nothing for an OFD lock at the last close: it is to be dropped by handle."""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run(
        "fd=os.open(path,os.O_RDWR)\n"
        f"fcntl.fcntl(fd,{F_OFD_SETLKW},struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,8,0))\n"
        "os.close(fd)",
        "f",
    )
    daemon.await_journal("release")
    journal = daemon.ask("journal")
    locks = [e for e in journal if e["operation"] == "setlk"]
    (flush,) = [e["facts"] for e in journal if e["operation"] == "flush"]
    (released,) = [e["facts"] for e in journal if e["operation"] == "release"]
    assert [(e["start"], e["end"], e["type"]) for e in locks] == [(0, 7, fcntl.F_WRLCK)]
    assert flush["lock_owner"] != locks[0]["owner"]
    assert released["lock_owner"] is None


def test_a_lock_in_the_way(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    code = "fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,2,4,2); say(os.getpid()); input()"
    holder = daemon.program(code, "f")
    pid = holder.listen()
    refused, found = daemon.run(
        "fd=os.open(path,os.O_RDWR)\n"
        "try: fcntl.lockf(fd,fcntl.LOCK_EX|fcntl.LOCK_NB)\n"
        "except OSError as e: say(e.errno)\n"
        "b=fcntl.fcntl(fd,fcntl.F_GETLK,struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0))\n"
        "say(struct.unpack('hhqqi4x',b))",
        "f",
    )
    assert refused == errno.EAGAIN
    assert found == [fcntl.F_WRLCK, os.SEEK_SET, 2, 4, pid]
    holder.tell()
    holder.finish()


def test_a_waiting_lock_is_granted_after_the_holder(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    holder = daemon.program("fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,2); say(1); input()", "f")
    holder.listen()
    waiter = daemon.program("fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,2); say('granted')", "f")
    daemon.await_waiting("setlk")
    holder.tell()
    assert waiter.finish() == ["granted"]
    holder.finish()


def test_a_hundred_and_fifty_waiters_use_no_worker(toy: Mounter) -> None:
    """More than pyfuse3's default number of workers."""
    daemon = toy()
    daemon.put("f", b"x")
    holder = daemon.program("fd=os.open(path,os.O_RDWR); fcntl.flock(fd,2); say(1); input()", "f")
    holder.listen()
    waiters = daemon.program(
        "import threading\n"
        "def wait():\n"
        "    fd=os.open(path,os.O_RDWR); fcntl.flock(fd,1); os.close(fd)\n"
        "threads=[threading.Thread(target=wait) for _ in range(150)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; say('all')",
        "f",
    )
    daemon.await_waiting("setlk", 150)
    assert daemon.run("say(os.path.getsize(path))", "f") == [1]
    holder.tell()
    assert waiters.finish() == ["all"]
    holder.finish()


def test_more_programs_wait_in_pyfuse3_handlers_than_it_has_workers_by_default(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.ask("shut", operation="lookup")
    waiters = daemon.program(
        "import threading\n"
        "threads=[threading.Thread(target=os.path.exists,args=(path+str(n),)) for n in range(150)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; say('all')",
        "f",
    )
    daemon.await_waiting("lookup", 150)
    assert daemon.run("say(len(os.listdir(path)))") == [1]
    daemon.ask("open", operation="lookup")
    assert waiters.finish() == ["all"]


def test_fallocate(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("os.posix_fallocate(os.open(path,os.O_RDWR),100,50)", "f")
    (call,) = daemon.ask("journal", operation="fallocate")
    assert (call["offset"], call["length"], call["mode"]) == (100, 50, 0)
    assert len(daemon.content("f")) == 150


def test_lseek(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"12345")
    said = daemon.run(
        "fd=os.open(path,os.O_RDONLY)\n"
        "say(os.lseek(fd,2,os.SEEK_DATA)); say(os.lseek(fd,2,os.SEEK_HOLE))\n"
        "try: os.lseek(fd,9,os.SEEK_DATA)\n"
        "except OSError as e: say(e.errno)",
        "f",
    )
    assert said == [2, 5, errno.ENXIO]


def test_copy_file_range(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"0123456789")
    target = daemon.put("g", b"")
    said = daemon.run(
        "a=os.open(path,os.O_RDONLY); b=os.open(path[:-1]+'g',os.O_WRONLY)\n"
        "say(os.copy_file_range(a,b,6,2,0))",
        "f",
    )
    assert said == [6]
    assert daemon.content("g") == b"234567"
    assert daemon.ask("journal", operation="copy_file_range")[0]["nodeid_out"] == target


STATX_BTIME = (
    "import ctypes\n"
    "buf=ctypes.create_string_buffer(256)\n"
    "libc=ctypes.CDLL(None,use_errno=True)\n"
    "assert libc.statx(-100,path.encode(),0,0xfff,buf)==0\n"
    "mask,=struct.unpack_from('I',buf,0); size,=struct.unpack_from('Q',buf,40)\n"
    "say([mask&0x800, size, *struct.unpack_from('qI',buf,80)])\n"
)


def test_statx_has_the_birth_time(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"12345")
    (said,) = daemon.run(STATX_BTIME, "f")
    if not daemon.ask("journal", operation="statx"):
        pytest.skip("the kernel has no FUSE_STATX (Linux 6.6)")
    assert said == [0x800, 5, 1_234_567_890, 123_456_789]


def test_tmpfile(toy: Mounter) -> None:
    daemon = toy()
    (said,) = daemon.run(
        "fd=os.open(path,os.O_TMPFILE|os.O_RDWR,0o640); os.write(fd,b'tmp'); st=os.fstat(fd)\n"
        "say([st.st_mode, os.pread(fd,9,0).decode()])"
    )
    assert said == [stat.S_IFREG | 0o640, "tmp"]


def test_plain_readdir_when_the_kernel_expects_no_stat(toy: Mounter) -> None:
    daemon = toy(readdirplus_auto=True)
    names = [f"name{number:03}" for number in range(300)]
    for name in names:
        daemon.put(name, b"")
    assert sorted(daemon.run("say(sorted(os.listdir(path)))")[0]) == names
    journal = [e["operation"] for e in daemon.ask("journal")]
    assert "readdirplus" in journal
    assert "readdir" in journal


def test_an_unexpected_exception_is_logged_and_answered_eio(toy: Mounter) -> None:
    daemon = toy(broken=True)
    daemon.put("f", b"x")
    code = "try: os.posix_fallocate(os.open(path,os.O_RDWR),0,9)\nexcept OSError as e: say(e.errno)"
    assert daemon.run(code, "f") == [errno.EIO]
    assert daemon.run("say(os.path.getsize(path))", "f") == [1]
    assert "ZeroDivisionError: a bug" in daemon.stderr.read_text()
