"""The guardian aborts the mount of a daemon that is dead and cannot end, or does not turn; and no other."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.rig.processes import poll_until
from scripts.rig.rig import ROOT

DAEMON = """
import ctypes, sys, threading, time
from functools import partial
from pathlib import Path
from nfsfuse.cli import guardian, logs

directory = Path(sys.argv[1])
guardian.CONNECTIONS = directory
logs.set_up(str(directory / "log"), "info")
made = guardian.Guardian(partial(logs.set_up, str(directory / "log"), "info"), float(sys.argv[3]) or None)
made.guard(7)
print(made._pid, flush=True)
if sys.argv[2] == "stuck":  # as the main thread of a killed process is gone, and another one is not
    threading.Thread(target=time.sleep, args=(60,)).start()
    ctypes.CDLL(None).syscall(60, 0)  # exit(2), of this thread alone
def beat(seconds):
    for _ in range(int(seconds * 10)):
        made.beat()
        time.sleep(0.1)
def turn_for_ever():
    while True: pass
beat(3)
match sys.argv[2]:
    case "waits": ctypes.PyDLL(None).sleep(1000)  # with Python's lock
    case "turns": turn_for_ever()
    case "turns again":
        time.sleep(4)
        beat(5)
sys.stdin.readline()
made.end()
"""


@pytest.fixture
def connections(tmp_path: Path) -> Path:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "abort").touch()
    return tmp_path


def started(connections: Path, how: str, seconds: float = 0) -> tuple[subprocess.Popen[bytes], int]:
    """A daemon, and a descriptor of its guardian."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, connections, how, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        bufsize=0,
    )
    assert daemon.stdout is not None
    return daemon, os.pidfd_open(int(daemon.stdout.readline()))


def ends(process: int) -> bool:
    try:
        return bool(select.select([process], [], [], 20)[0])
    finally:
        os.close(process)


def test_a_daemon_that_is_dead_and_cannot_end_is_let_go(connections: Path) -> None:
    daemon, guardian = started(connections, "stuck")
    with daemon:
        assert ends(guardian)
        assert daemon.poll() is None, "it is there still, but for its main thread"
        assert (connections / "7" / "abort").read_text() == "1"
        poll_until(lambda: "was aborted" in (connections / "log").read_text(), 10, "it is said")
        daemon.kill()


def test_where_it_cannot_be_aborted_that_is_said(connections: Path) -> None:
    (connections / "7" / "abort").unlink()
    (connections / "7").rmdir()
    daemon, guardian = started(connections, "stuck")
    with daemon:
        assert ends(guardian)
        assert "programs in it hang until somebody writes 1" in (connections / "log").read_text()
        daemon.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_daemon_that_ends_needs_nobody(connections: Path, number: signal.Signals | None) -> None:
    """Killed, told to end, or at the end of its work."""
    daemon, guardian = started(connections, "idle")
    with daemon:
        assert daemon.stdin is not None
        if number is None:
            daemon.stdin.write(b"\n")
        else:
            daemon.send_signal(number)
        assert ends(guardian)
        daemon.wait(20)
        assert (connections / "7" / "abort").read_text() == ""


@pytest.mark.parametrize(("how", "where"), [("waits", "<string>"), ("turns", "in turn_for_ever")])
def test_a_daemon_that_does_not_turn_is_told_of_and_let_go(connections: Path, how: str, where: str) -> None:
    daemon, guardian = started(connections, how, 4)
    with daemon:
        poll_until(lambda: (connections / "7" / "abort").read_text() == "1", 30, "it is aborted")
        poll_until(lambda: "was aborted" in (connections / "log").read_text(), 10, "it is said")
        said = (connections / "log").read_text()
        assert "has not turned for 2 s; its threads:" in said
        assert "most recent call first" in said
        assert where in said
        daemon.kill()
        assert ends(guardian)


def test_a_daemon_that_turns_again_is_told_of(connections: Path) -> None:
    daemon, guardian = started(connections, "turns again", 5)
    with daemon:
        poll_until(lambda: "turns again, after" in (connections / "log").read_text(), 30, "it turns again")
        assert (connections / "7" / "abort").read_text() == ""
        daemon.kill()
        assert ends(guardian)


def test_a_daemon_that_is_stopped_is_left_alone(connections: Path) -> None:
    daemon, guardian = started(connections, "idle", 2)
    with daemon:
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(6)
        assert (connections / "7" / "abort").read_text() == ""
        assert "has not turned" not in (connections / "log").read_text()
        daemon.kill()
        assert ends(guardian)
