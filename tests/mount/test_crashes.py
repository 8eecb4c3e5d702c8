"""Promise 12: a daemon that ends for any reason but an orderly unmount leaves a dead mount (ENOTCONN), never an
empty directory. Also one that has failed: an exception, a violated invariant."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.proof.programs import SOURCES
from scripts.rig.processes import poll_until
from scripts.rig.rig import Rig, Server
from scripts.rig.sweep import has_ended

SECONDS_MAX = 30.0


def crashing_mount(rig: Rig, server: Server, fault: str, options: str = "") -> tuple[Path, Path]:
    """A mount with a fault that is there as soon as a file is; the mountpoint and that file."""
    mountpoint, trigger = rig.mountpoint(), rig.directory / f"trigger-{rig.count()}"
    rig.command(
        sys.executable, SOURCES / "crashing_mount.py", fault, trigger,
        "mount", server.address, mountpoint, "-o", f"log={rig.log_of(mountpoint)},{options}",
    ).succeeded()  # fmt: skip
    return mountpoint, trigger


def is_not_connected(mountpoint: Path) -> bool:
    """Whether everything in it fails with ENOTCONN, as a listing does: it is not empty."""
    try:
        os.listdir(mountpoint)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def provoke(fault: str, mountpoint: Path, other: Path) -> subprocess.Popen[bytes]:
    """Have the code run in which the fault is; a program that may have to wait until the mount is let go."""
    match fault:
        case "handler":  # the kernel forgets what has no name any more
            what = f"import os; os.unlink({str(mountpoint / 'file')!r})"
        case "session":  # it needs nobody
            what = "pass"
        case _:  # another client wants the pages
            what = f"open({str(other / 'file')!r}, 'r+b').write(b'y' * 8192)"
    return subprocess.Popen([sys.executable, "-c", what])


@pytest.mark.parametrize("fault", ["recall", "invariant", "handler", "session"])
def test_a_daemon_that_has_failed_leaves_a_dead_mount(rig: Rig, fault: str) -> None:
    server = rig.server(arguments=["--lease", "3"])
    (server.export / "file").write_bytes(b"x" * 8192)
    mountpoint, trigger = crashing_mount(rig, server, fault)
    other = rig.mount(server)
    pid = rig.daemon_of(mountpoint)
    rig.deadline(SECONDS_MAX)
    assert (mountpoint / "file").read_bytes() == b"x" * 8192
    trigger.touch()
    with provoke(fault, mountpoint, other) as program:
        poll_until(lambda: has_ended(pid), SECONDS_MAX, "the daemon ends")
        assert rig.kernel_mount(mountpoint) is not None, "it is not unmounted"
        assert is_not_connected(mountpoint)
        assert program.wait(SECONDS_MAX) == 0, "it is done for everybody else"
    said = rig.log_of(mountpoint).read_text()
    assert "died of a bug" in said
    assert "is left as a dead mount" in said
    rig.command("nfsfuse", "mount", server.address, mountpoint).succeeded()
    assert os.listdir(mountpoint) == ([] if fault == "handler" else ["file"])
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert rig.kernel_mount(mountpoint) is None, "the dead one is still below"


def test_programs_that_wait_in_it_are_let_go(rig: Rig) -> None:
    """One waits for a page, and so does the thread that is to take it from the kernel: the daemon could not
    end."""
    server = rig.server(arguments=["--lease", "3"])
    (server.export / "file").write_bytes(b"x" * 8192)
    mountpoint, trigger = crashing_mount(rig, server, "session")
    pid = rig.daemon_of(mountpoint)
    rig.deadline(SECONDS_MAX)
    os.stat(mountpoint / "file")
    server.kill()
    with subprocess.Popen(["cat", mountpoint / "file"], stderr=subprocess.PIPE, text=True) as program:
        trigger.touch()
        poll_until(lambda: has_ended(pid), SECONDS_MAX, "the daemon ends")
        _, said = program.communicate(timeout=SECONDS_MAX)
        assert program.returncode == 1
        assert any(os.strerror(number) in said for number in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO))
    assert is_not_connected(mountpoint)


def test_a_mount_that_was_aborted_stays_dead(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    pid = rig.daemon_of(mountpoint)
    with (mountpoint / "file").open("w") as file:
        file.write("written")
        file.flush()
        mount = rig.kernel_mount(mountpoint)
        assert mount is not None
        mount.abort()
        poll_until(lambda: has_ended(pid), SECONDS_MAX, "the daemon ends")
        with suppress(OSError):
            file.close()
    assert is_not_connected(mountpoint)
    assert (server.export / "file").read_text() == "written", "what the daemon had was not lost"
    assert "has aborted its connection" in rig.log_of(mountpoint).read_text()
