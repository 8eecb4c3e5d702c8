"""Every waiting operation can be killed; only lock waits give way to other signals."""

from __future__ import annotations

import errno
import signal
import time

import pytest

from tests.fuse.toymount import Daemon, Mounter, Program

HANDLED = "signal.signal(signal.SIGUSR1,lambda *_: None); signal.siginterrupt(signal.SIGUSR1,True)\n"
KILL_SECONDS_MAX = 1.0


def assert_dies_at_once(program: Program) -> None:
    begin = time.monotonic()
    program.process.kill()
    assert program.process.wait(timeout=KILL_SECONDS_MAX) == -signal.SIGKILL
    assert time.monotonic() - begin < KILL_SECONDS_MAX


def held(daemon: Daemon, function: str) -> Program:
    """Someone holds the lock; the program asks for it, in C through ctypes, so that Python does not retry."""
    daemon.put("f", b"x")
    code = "fd=os.open(path,os.O_RDWR); fcntl.lockf(fd,2); fcntl.flock(fd,2); say(1); input()"
    holder = daemon.program(code, "f")
    holder.listen()
    return daemon.program(
        HANDLED + "import ctypes; libc=ctypes.CDLL(None,use_errno=True); fd=os.open(path,os.O_RDWR); say(1)\n"
        f"r={function}; say([r,ctypes.get_errno()])",
        "f",
    )


LOCK_CALLS = {
    "posix": "libc.fcntl(fd,fcntl.F_SETLKW,struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0))",
    "ofd": "libc.fcntl(fd,38,struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0))",
    "flock": "libc.flock(fd,2)",
}


@pytest.mark.parametrize("call", LOCK_CALLS)
def test_a_signal_ends_a_lock_wait_with_eintr(toy: Mounter, call: str) -> None:
    daemon = toy()
    waiter = held(daemon, LOCK_CALLS[call])
    waiter.listen()
    daemon.await_waiting("setlk")
    waiter.process.send_signal(signal.SIGUSR1)
    assert waiter.listen() == [-1, errno.EINTR]
    daemon.await_waiting("setlk", 0)


@pytest.mark.parametrize("call", LOCK_CALLS)
def test_a_lock_wait_is_killed(toy: Mounter, call: str) -> None:
    daemon = toy()
    waiter = held(daemon, LOCK_CALLS[call])
    waiter.listen()
    daemon.await_waiting("setlk")
    assert_dies_at_once(waiter)
    daemon.await_waiting("setlk", 0)


BLOCKED = {
    "read": "say(os.read(os.open(path,os.O_RDONLY),9).decode())",
    "lookup": "say(os.path.getsize(path))",
    "write": "say(os.write(os.open(path,os.O_WRONLY),b'y'))",
    "create": "os.open(path+'new',os.O_CREAT|os.O_RDWR); say('created')",
    "mapped read": "m=mmap.mmap(os.open(path,os.O_RDWR),0); say(m[0])",
}


@pytest.mark.parametrize("case", BLOCKED)
def test_a_blocked_program_is_killed(toy: Mounter, case: str) -> None:
    daemon = toy()
    gate = case.split()[-1]
    daemon.put("f", b"x")
    daemon.ask("shut", operation=gate)
    program = daemon.program(BLOCKED[case], "f")
    daemon.await_waiting(gate)
    assert_dies_at_once(program)
    if gate != "read":  # a read into the page cache is nobody's: the kernel does not call it off
        daemon.await_waiting(gate, 0)
    daemon.ask("open", operation=gate)
    assert daemon.run("say(os.path.getsize(path))", "f") == [1]


@pytest.mark.parametrize("case", ["read", "lookup"])
def test_other_signals_do_not_disturb_a_blocked_program(toy: Mounter, case: str) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.ask("shut", operation=case)
    program = daemon.program(HANDLED + "say(1)\n" + BLOCKED[case], "f")
    program.listen()
    daemon.await_waiting(case)
    program.process.send_signal(signal.SIGUSR1)
    assert daemon.ask("status")["waiting"][case] == 1
    daemon.ask("open", operation=case)
    assert program.finish()[-1] in ("x", 1)


def test_a_kill_after_an_ignored_signal_still_kills(toy: Mounter) -> None:
    """The kernel sends one FUSE_INTERRUPT for a request, whatever comes after."""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.ask("shut", operation="read")
    program = daemon.program(HANDLED + "say(1)\n" + BLOCKED["read"], "f")
    program.listen()
    daemon.await_waiting("read")
    program.process.send_signal(signal.SIGUSR1)
    daemon.await_waiting("read")
    assert_dies_at_once(program)


def test_interrupting_requests_that_are_just_being_answered(toy: Mounter) -> None:
    """Interrupts race with answers: none is lost, none hits another request, nothing hangs."""
    daemon = toy(timeout=0.0)
    daemon.put("f", b"x")
    code = (
        "signal.signal(signal.SIGALRM,lambda *_: None); signal.setitimer(signal.ITIMER_REAL,.0007,.0007)\n"
        "import ctypes; libc=ctypes.CDLL(None,use_errno=True)\n"
        "fd=os.open(path,os.O_RDWR); bad=[]\n"
        "for _ in range(2000):\n"
        "    os.stat(path)\n"
        "    if libc.flock(fd,2)!=0 and ctypes.get_errno()!=errno.EINTR: bad.append(ctypes.get_errno())\n"
        "    if libc.flock(fd,8)!=0: bad.append(-ctypes.get_errno())\n"
        "signal.setitimer(signal.ITIMER_REAL,0); say(bad)"
    )
    assert daemon.run(code, "f") == [[]]
