"""A program that has written runs another one, which closes what was written.

Descriptors of Python, Node and many others are close-on-exec. The kernel sends the FLUSH of such a one inside
execve(2), while it holds exec_update_lock of the thread: what the daemon needs to answer must not need that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from scripts.rig.processes import poll_until
from tests.mount.conftest import Mounts, Pair

SECONDS_MAX = 30.0

DIRTY = """
import fcntl, os, subprocess, sys, threading
descriptor = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
assert not os.get_inheritable(descriptor)
if sys.argv[1] == "locked":
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
def dirty():
    os.write(descriptor, b"written\\n")
dirty()
"""

WAYS = {
    "exec": "os.execv('/bin/true', ['true'])",
    "shell": "assert os.system('true') == 0",
    "vfork": "subprocess.run(['/bin/true'], close_fds=False, check=True)",
    "fork": "subprocess.run(['/bin/true'], close_fds=False, preexec_fn=int, check=True)",
    "posix_spawn": "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "script": """
open("script", "w").write("#!/bin/sh\\nexit 0\\n")
os.chmod("script", 0o755)
assert os.system("./script") == 0
""",
    "thread": "thread = threading.Thread(target=os.system, args=('true',)); thread.start(); thread.join()",
    "threads": """
def work():
    for _ in range(20):
        dirty()
        subprocess.run(['/bin/true'], close_fds=False, check=True)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "exec in a thread": "threading.Thread(target=os.execv, args=('/bin/true', ['true'])).start()",
}


@pytest.mark.parametrize("lock", ["plain", "locked"])
@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_has_written_runs_another(mounts: Mounts, pair: Pair, way: str, lock: str) -> None:
    program = f"import os; os.chdir({str(pair.one)!r})" + DIRTY + WAYS[way]
    mounts.rig.command(sys.executable, "-c", program, lock, seconds=SECONDS_MAX).succeeded()
    assert (pair.one / "file").read_bytes() == (pair.two / "file").read_bytes()
    assert (pair.two / "file").read_bytes().startswith(b"written\n")


STALLED = DIRTY + "os.write(1, b'.'); os.read(0, 1)\n" + WAYS["exec"]


@pytest.mark.parametrize("lock", ["plain", "locked"])
def test_while_the_server_is_away_execve_waits_and_can_be_killed(mounts: Mounts, pair: Pair, lock: str) -> None:
    """And the mount goes on for others: nothing waits for the program but itself."""
    directory = os.open(pair.one, os.O_RDONLY)
    os.fstatvfs(directory)  # what it says is known for some seconds
    server = mounts.server.process
    with subprocess.Popen(
        [sys.executable, "-c", STALLED, lock],
        cwd=pair.one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as program:  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            assert program.stdout.read(1) == b"."
            server.send_signal(signal.SIGSTOP)
            program.stdin.write(b"\n")
            time.sleep(0.5)  # some looks at it
            assert program.poll() is None
            os.fstatvfs(directory)
            program.kill()
            poll_until(lambda: program.poll() is not None, 2, "it dies")
        finally:
            server.send_signal(signal.SIGCONT)
            program.kill()
            os.close(directory)
    assert (pair.two / "file").read_bytes() == b"written\n", "its write had returned"


MANY = """
import os, sys
for number in range(200):
    os.write(os.open(str(number), os.O_RDWR | os.O_CREAT), b"x")
os.write(1, b".")
os.read(0, 1)
"""


def test_a_killed_program_with_many_files_does_not_wait_for_the_server(mounts: Mounts, pair: Pair) -> None:
    server = mounts.server.process
    with subprocess.Popen(
        [sys.executable, "-c", MANY], cwd=pair.one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as program:
        assert program.stdout is not None
        assert program.stdout.read(1) == b"."
        server.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            program.kill()
            program.wait(10)
            assert time.monotonic() - began < 2
        finally:
            server.send_signal(signal.SIGCONT)
    assert [(pair.two / str(number)).read_bytes() for number in range(200)] == [b"x"] * 200
