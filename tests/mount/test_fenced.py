"""Clients that are away for longer than their lease: what they held goes to others, what they had dirty never
overwrites what is newer, they are told, and they serve nothing that is old."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.proof.load.journal import Operation, read
from scripts.proof.load.worker import SLOT
from scripts.proof.load.world import LEASE_SECONDS, MARGIN_SECONDS, SLACK_SECONDS
from scripts.proof.programs import SOURCES
from scripts.rig.processes import poll_until
from scripts.rig.proxy import Proxy
from scripts.rig.rig import ROOT, Rig, Server
from tests.mount.conftest import TEST_SECONDS_MAX

PAGE = 4096
FENCED_AFTER = LEASE_SECONDS + MARGIN_SECONDS


@pytest.fixture
def server(rig: Rig) -> Iterator[Server]:
    rig.deadline(TEST_SECONDS_MAX)
    rig.environment["NFSFUSE_GUARD"] = "1"
    server = rig.server(listen="127.0.0.1:0", arguments=["--lease", str(LEASE_SECONDS)])
    yield server
    for log in (server.log, *rig.directory.glob("mount-*.log")):
        assert "Traceback" not in log.read_text(), log.read_text()


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    """What *call* says: 0 if it succeeds."""
    try:
        call(*arguments)
    except OSError as exc:
        return exc.errno or -1
    return 0


@contextmanager
def watching(rig: Rig, path: Path, name: str) -> Iterator[Callable[[], list[Operation]]]:
    """A program looks at the first word of *path* all the time; what it has seen, after it has ended."""
    watcher = subprocess.Popen(
        [sys.executable, "-m", "scripts.proof.load.watcher", path, name, rig.directory],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=rig.environment,
    )
    assert watcher.stdin is not None
    journal = rig.directory / f"{name}.journal"
    poll_until(lambda: journal.exists() and journal.stat().st_size > 1000, 20, "it watches")

    def seen() -> list[Operation]:
        assert watcher.stdin is not None
        watcher.stdin.close()
        assert watcher.wait(30) == 0
        history = read(journal)
        assert history.complete
        return [operation for operation in history.operations if operation.done]

    try:
        yield seen
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdin.close()


@pytest.mark.parametrize("how", ["unreachable", "half-open"])
def test_a_client_that_is_cut_off_for_longer_than_its_lease_is_fenced(
    rig: Rig, server: Server, how: str
) -> None:
    for name in ("seen", "dirty", "locked", "page"):
        (server.export / name).write_bytes(SLOT.pack(1).ljust(PAGE, b"\0"))
    with Proxy(rig, server.address) as proxy:
        cut, other = rig.mount(server, address=proxy.address), rig.mount(server)
        dirty = os.open(cut / "dirty", os.O_RDWR)
        locked = os.open(cut / "locked", os.O_RDWR)
        fcntl.flock(locked, fcntl.LOCK_EX)
        with watching(rig, cut / "seen", "watcher") as watched:
            os.pwrite(dirty, b"from before", 0)
            proxy.refuse()
            if how == "half-open":
                proxy.swallow()
            else:
                proxy.cut()
            lost_at = time.monotonic()
            # The other client goes on within the lease: it writes, and it gets the lock.
            with (other / "seen").open("r+b", buffering=0) as file:
                file.write(SLOT.pack(2))
                os.fsync(file.fileno())
            written_at = time.monotonic_ns()
            (other / "dirty").write_bytes(b"from the other")
            with (other / "locked").open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                waited = time.monotonic() - lost_at
                assert waited < FENCED_AFTER + SLACK_SECONDS
                file.write(b"mine")
            proxy.cut()
            proxy.let_pass()
            proxy.accept()
            assert (cut / "seen").read_bytes()[: SLOT.size] == SLOT.pack(2), "the mount goes on by itself"
            looks = watched()
        stale = [look for look in looks if look.began > written_at and look["value"] != 2]
        assert not stale, stale
        assert {look["value"] for look in looks} == {1, 2}
        poll_until(lambda: "a lock was lost with" in rig.log_of(cut).read_text(), 10, "it is said")
        log = rig.log_of(cut).read_text()
        assert "the server has ended this mount's session" in log
        assert "dirty: 11 bytes written here are lost with the session" in log
        assert "locked: a lock was lost with the session" in log
        assert "fenced" in server.log.read_text()
        # Told once for data, and at every use for a lock, until it is closed.
        assert errno_of(os.fsync, dirty) == errno.EIO
        assert errno_of(os.fsync, dirty) == 0
        assert os.pread(dirty, 20, 0) == b"from the other"
        assert errno_of(os.close, dirty) == 0
        assert errno_of(os.pread, locked, 1, 0) == errno.EIO
        assert errno_of(os.pwrite, locked, b"x", 0) == errno.EIO
        os.close(locked)
        assert (cut / "locked").read_bytes()[:4] == b"mine"
        (cut / "new").write_bytes(b"works")
        assert (other / "new").read_bytes() == b"works"
    print(f"\n{how}: the other client waited {waited:.2f} s")


def test_a_stopped_client_never_overwrites_what_is_newer(rig: Rig, server: Server) -> None:
    """SIGSTOP for longer than the lease, with a write not written back and a page dirty in its kernel."""
    (server.export / "written").write_bytes(b"old" * PAGE)
    (server.export / "mapped").write_bytes(b"o" * PAGE)
    stopped, other = rig.mount(server), rig.mount(server)
    daemon = rig.daemon_of(stopped)
    child = subprocess.Popen(
        [sys.executable, SOURCES / "mapped_stores.py", stopped / "mapped", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    descriptor = os.open(stopped / "written", os.O_RDWR)
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(b"store s\n")  # stored, and not synchronised
        assert child.stdout.readline() == b"stored\n"
        os.pwrite(descriptor, b"stopped's", 0)
        os.kill(daemon, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with (other / "written").open("r+b", buffering=0) as file:
                file.write(b"other's")
                os.fsync(file.fileno())
            with (other / "mapped").open("r+b", buffering=0) as file:
                file.write(b"n")
                os.fsync(file.fileno())
            waited = time.monotonic() - began
            assert waited + MARGIN_SECONDS > LEASE_SECONDS
            assert waited < FENCED_AFTER + SLACK_SECONDS
        finally:
            os.kill(daemon, signal.SIGCONT)
        assert errno_of(os.fsync, descriptor) == errno.EIO
        child.stdin.write(b"sync\n")
        assert int(child.stdout.readline()) == errno.EIO
        for mount in (stopped, other, server.export):
            assert (mount / "written").read_bytes()[:7] == b"other's"
            assert (mount / "mapped").read_bytes()[:1] == b"n"
        assert errno_of(os.fsync, descriptor) == 0
        os.pwrite(descriptor, b"again", 0)
        os.close(descriptor)
        assert (other / "written").read_bytes()[:7] == b"again's"
        child.stdin.close()
        child.wait(20)
    log = rig.log_of(stopped).read_text()
    assert "written: 9 bytes written here are lost with the session" in log, log
    print(f"\nstopped: the other client waited {waited:.2f} s")


def test_a_program_that_waits_for_the_server_can_be_killed_and_others_go_on_when_it_is_back(
    rig: Rig, server: Server
) -> None:
    """A hard mount, unreachable for longer than the lease: nobody fails, nobody is beyond help."""
    (server.export / "file").write_bytes(b"x" * PAGE)
    with Proxy(rig, server.address) as proxy:
        mount = rig.mount(server, address=proxy.address)
        assert (mount / "file").read_bytes()[:1] == b"x"
        proxy.refuse()
        proxy.cut()
        time.sleep(LEASE_SECONDS)  # caches are dropped by then: nothing is served any more
        victim = subprocess.Popen(["cat", mount / "file"], stdout=subprocess.DEVNULL)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append((mount / "file").read_bytes()))
        reader.start()
        with pytest.raises(subprocess.TimeoutExpired):
            victim.wait(1.0)
        victim.kill()
        victim.wait(5)
        assert not got
        proxy.accept()
        reader.join(30)
        assert got == [b"x" * PAGE]


@pytest.mark.parametrize("how", ["stopped", "half-open", "unreachable"])
def test_who_keeps_nobody_waiting_loses_nothing_however_long_it_is_silent(
    rig: Rig, server: Server, how: str
) -> None:
    """A daemon that is busy, or without its server, for longer than the lease, with data not written back."""
    (server.export / "written").write_bytes(b"old" * PAGE)
    (server.export / "elsewhere").mkdir()
    with Proxy(rig, server.address) as proxy:
        away, other = rig.mount(server, address=proxy.address), rig.mount(server)
        daemon = rig.daemon_of(away)
        with (away / "written").open("r+b", buffering=0) as file:
            file.write(b"while alone")
            if how == "stopped":
                os.kill(daemon, signal.SIGSTOP)
            else:
                proxy.refuse()
                if how == "half-open":
                    proxy.swallow()
                else:
                    proxy.cut()
            try:
                (other / "elsewhere" / "new").write_bytes(b"of somebody else")
                time.sleep(FENCED_AFTER + 2 * SLACK_SECONDS)
            finally:
                if how == "stopped":
                    os.kill(daemon, signal.SIGCONT)
                else:
                    proxy.cut()
                    proxy.let_pass()
                    proxy.accept()
            assert errno_of(os.fsync, file.fileno()) == 0
        for mount in (away, other, server.export):
            assert (mount / "written").read_bytes()[:11] == b"while alone"
            assert (mount / "elsewhere" / "new").read_bytes() == b"of somebody else"
        assert "fenced" not in server.log.read_text()
        assert "lost with the session" not in rig.log_of(away).read_text()
