"""What may be looked at of a thread that waits for the daemon, and holds locks of the kernel meanwhile.

Whoever adds a file to `ALLOWED` makes sure here that it takes none of them. Reading is done in processes of
their own, which can be killed; the test fails, and does not hang, where a look waits.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsfuse.fuse.upcalls.requesters import is_dying
from scripts.rig.sweep import MARK, marked
from tests.fuse.toymount import Daemon, Mounter, Program, environment

LOOK_SECONDS_MAX = 5.0
WAITS_SECONDS = 0.5
"""A look that has not returned by then waits."""

ALLOWED = ("status", "schedstat")
"""Of a thread that has memory; see `nfsfuse.fuse.upcalls.requesters` and `_notifications.c`."""

IS_DYING = "import sys; from nfsfuse.fuse.upcalls.requesters import is_dying; print(is_dying(int(sys.argv[1])))"


def look(*argv: str) -> str | None:
    """What a program says that looks at another one; None if it has not returned in time."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment(), text=True) as looker:
        assert looker.stdout is not None
        try:
            seconds = LOOK_SECONDS_MAX if argv[0] == sys.executable else WAITS_SECONDS
            if not select.select([looker.stdout], [], [], seconds)[0]:
                return None
            return looker.stdout.read()
        finally:
            looker.kill()


def read(thread: int, name: str) -> str | None:
    return look("cat", f"/proc/{thread}/{name}")


OPENS = "fd=os.open(path,os.O_RDWR); os.write(fd,b'y'); "


def in_exec(daemon: Daemon) -> Program:
    """A program in execve(2), which waits for the FLUSH of a close-on-exec file."""
    daemon.put("f", b"x")
    daemon.ask("shut", operation="flush")
    program = daemon.program(OPENS + "os.execv('/bin/true', ['true'])", "f")
    daemon.await_waiting("flush")
    return program


MAPS_OVER = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
address = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, os.open(path, os.O_RDWR), 0)
ctypes.c_char.from_address(address).value = b"y"
libc.mmap(address, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10, -1, 0)  # MAP_FIXED
"""


def in_mmap(daemon: Daemon) -> Program:
    """A program in mmap(2), over a dirty mapping: it waits for the write-back of its pages."""
    daemon.put("f", bytes(4096))
    daemon.ask("shut", operation="write")
    program = daemon.program(MAPS_OVER, "f")
    daemon.await_waiting("write")
    return program


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize(
    ("begin", "taken", "operation"),
    [
        pytest.param(in_exec, "environ", "flush", id="execve: exec_update_lock"),
        pytest.param(in_mmap, "cmdline", "write", id="mmap: mmap_lock"),
    ],
)
def test_what_is_allowed_waits_for_no_lock_of_a_program(
    toy: Mounter, begin: Callable[[Daemon], Program], taken: str, operation: str, name: str
) -> None:
    daemon = toy()
    program = begin(daemon)
    assert read(program.process.pid, taken) is None, "it holds the lock"
    assert read(program.process.pid, name)
    assert look(sys.executable, "-c", IS_DYING, str(program.process.pid)) == "False\n"
    daemon.ask("open", operation=operation)
    program.finish()


def test_the_sweep_of_a_test_rig_does_not_wait_for_a_program_in_execve(toy: Mounter, tmp_path: Path) -> None:
    """Whosever it is: it looks at the environment of all processes."""
    daemon = toy()
    program = in_exec(daemon)
    sleeps = {**environment(), MARK: str(tmp_path)}
    with subprocess.Popen(["sleep", "60"], env=sleeps) as marked_one:
        assert marked(tmp_path) == [marked_one.pid]
        marked_one.kill()
    daemon.ask("open", operation="flush")
    program.finish()


@pytest.mark.parametrize("killed", [False, True])
def test_a_thread_that_exits_tells_why(toy: Mounter, killed: bool) -> None:
    """While it waits for the FLUSH of what it has open."""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.ask("shut", operation="flush")
    program = daemon.program(OPENS + "say(1); input()", "f")
    program.listen()
    if killed:
        program.process.kill()
    else:
        program.tell()
    daemon.await_waiting("flush")
    assert look(sys.executable, "-c", IS_DYING, str(program.process.pid)) == f"{killed}\n"
    daemon.ask("open", operation="flush")
    program.process.communicate(timeout=LOOK_SECONDS_MAX)
    assert program.process.returncode == (-signal.SIGKILL if killed else 0)


def test_a_thread_that_waits_is_not_dying_until_it_is_killed(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.ask("shut", operation="flush")
    program = daemon.program(OPENS + "os.close(fd)", "f")
    daemon.await_waiting("flush")
    assert is_dying(program.process.pid) is False
    program.process.kill()
    assert is_dying(program.process.pid) is True
    daemon.ask("open", operation="flush")
    program.process.wait(LOOK_SECONDS_MAX)


def test_of_whom_nothing_is_known() -> None:
    assert is_dying(threading.get_native_id()) is False
    assert is_dying(os.getpid()) is False
    assert is_dying(0) is None, "of a foreign pid namespace"
    assert is_dying(2**22 + 1) is None, "gone"
