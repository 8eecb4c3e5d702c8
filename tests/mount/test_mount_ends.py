"""How mounts end: unmounted, busy, told to end, killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsfuse.cli import registry
from scripts.rig.processes import poll_until
from scripts.rig.rig import Rig
from scripts.rig.sweep import end_process, has_ended, marked


def daemon_of(mountpoint: Path) -> int:
    """The process that serves *mountpoint*."""
    pid = registry.served_by(str(mountpoint))
    assert pid is not None
    return pid


@contextmanager
def working_in(directory: Path) -> Iterator[None]:
    """This process has its working directory there: the mount is busy."""
    before = os.open(".", os.O_RDONLY)
    os.chdir(directory)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def test_umount_waits_for_the_daemon(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    pid = daemon_of(mountpoint)
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert has_ended(pid)
    assert registry.served_by(str(mountpoint)) is None
    assert marked(rig.directory) == [server.process.pid], "the server alone is left"


def test_umount_of_what_is_not_mounted(rig: Rig) -> None:
    for path in (rig.mountpoint(), rig.directory / "missing", Path("/proc")):
        ended = rig.command("nfsfuse", "umount", path)
        assert ended.status == 1
        assert "is not an nfsfuse mount" in ended.errors


def test_a_busy_mount_is_an_error_and_lazy_the_way_out(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    pid = daemon_of(mountpoint)
    with (mountpoint / "file").open("w") as file:
        with working_in(mountpoint):
            ended = rig.command("nfsfuse", "umount", mountpoint)
            assert ended.status == 1
            assert "busy" in ended.errors
            assert "--lazy" in ended.errors
            file.write("still ")
            file.flush()
            rig.command("nfsfuse", "umount", "--lazy", mountpoint).succeeded()
        assert rig.kernel_mount(mountpoint) is None
        file.write("here")  # whoever has a file open goes on
    assert (server.export / "file").read_text() == "still here"
    poll_until(lambda: has_ended(pid), 10, "the daemon ends with the last user")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_daemon_unmounts(rig: Rig, number: signal.Signals) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    (mountpoint / "file").touch()
    assert end_process(daemon_of(mountpoint), number), "the daemon does not end"
    assert rig.kernel_mount(mountpoint) is None
    assert f"unmounting on {number.name}" in rig.log_of(mountpoint).read_text()
    assert registry.served_by(str(mountpoint)) is None


def test_a_killed_daemon_leaves_a_dead_mount_which_the_next_mount_replaces(rig: Rig) -> None:
    server = rig.server()
    (server.export / "file").write_text("content")
    mountpoint = rig.mount(server)
    descriptor = os.open(mountpoint / "file", os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    assert end_process(daemon_of(mountpoint), signal.SIGKILL)
    # Not unmounted: a backup would take the directory for empty.
    assert rig.kernel_mount(mountpoint) is not None
    for access in (os.listdir, os.statvfs):
        with pytest.raises(OSError, match="not connected") as caught:
            access(mountpoint)
        assert caught.value.errno == errno.ENOTCONN

    with contextlib.suppress(OSError):
        os.close(descriptor)
    log = rig.log_of(mountpoint)
    began = time.monotonic()
    rig.command("nfsfuse", "mount", server.address, mountpoint, "-o", f"log={log}").succeeded()
    assert (mountpoint / "file").read_text() == "content"
    with (mountpoint / "file").open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # the dead daemon's lock went when this one came
    assert time.monotonic() - began < 8, "not with the lease"
    assert "removed a dead mount" in log.read_text()
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert rig.kernel_mount(mountpoint) is None, "the dead mount is still below"


def test_a_dead_mount_can_be_unmounted(rig: Rig) -> None:
    mountpoint = rig.mount(rig.server())
    assert end_process(daemon_of(mountpoint), signal.SIGKILL)
    file = registry._file(str(mountpoint))
    assert file.exists()
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert rig.kernel_mount(mountpoint) is None
    assert not file.exists()


NOWHERE = """
import sys
from pathlib import Path
from nfsfuse.cli import main, registry
registry._directory = lambda: Path("/proc/nfsfuse")
sys.exit(main.main(sys.argv[1:]))
"""


def test_where_it_cannot_be_said_who_serves_it_the_mount_goes_on(rig: Rig) -> None:
    """As if /run were full; from the beginning, and in a new session."""
    server = rig.server(arguments=["--lease", "2"])
    mountpoint = rig.mountpoint()
    log = rig.log_of(mountpoint)
    rig.command(
        sys.executable, "-c", NOWHERE, "mount", server.address, mountpoint, "-o", f"log={log}"
    ).succeeded()
    (mountpoint / "file").write_text("content")
    server.process.send_signal(signal.SIGSTOP)
    poll_until(lambda: "caches were dropped" in log.read_text(), 20, "it is suspended")
    server.kill()
    shutil.rmtree(rig.directory / "state-1")
    rig.restart(server)
    poll_until(lambda: log.read_text().count("it cannot be said who serves it") == 2, 20, "a new session")
    os.statvfs(mountpoint)
    rig.command("nfsfuse", "umount", mountpoint).succeeded()


def test_a_mount_in_a_mount(rig: Rig) -> None:
    server = rig.server()
    outer = rig.mount(server)
    (outer / "inner").mkdir()
    rig.command("nfsfuse", "mount", server.address, outer / "inner").succeeded()
    (outer / "inner" / "file").write_text("deep")
    assert (outer / "file").read_text() == "deep"
    ended = rig.command("nfsfuse", "umount", outer)
    assert ended.status == 1
    assert "busy" in ended.errors
    rig.command("nfsfuse", "umount", outer / "inner").succeeded()
    rig.command("nfsfuse", "umount", outer).succeeded()


def test_the_server_goes_away_from_a_soft_mount(rig: Rig) -> None:
    """Served from the cache while the lease runs; then nothing is, nothing hangs, and the mount stays."""
    server = rig.server(arguments=["--lease", "2"])
    mountpoint = rig.mount(server, options="soft,timeo=1")
    (mountpoint / "file").write_text("content")
    server.kill()
    assert (mountpoint / "file").read_text() == "content"
    log = rig.log_of(mountpoint)
    poll_until(lambda: "operations fail (soft)" in log.read_text(), 20, "it fails")
    poll_until(lambda: "caches were dropped" in log.read_text(), 20, "it is suspended")
    with pytest.raises(OSError, match="Input/output error"):
        (mountpoint / "file").read_text()
    assert log.read_text().count("the connection to the server is lost") == 1, "said once"
    assert rig.kernel_mount(mountpoint) is not None
    rig.command("nfsfuse", "umount", mountpoint).succeeded()


def test_programs_of_a_hard_mount_wait_and_can_be_killed(rig: Rig) -> None:
    server = rig.server(arguments=["--lease", "2"])
    mountpoint = rig.mount(server)
    (mountpoint / "file").write_text("content")
    server.kill()
    poll_until(lambda: "caches were dropped" in rig.log_of(mountpoint).read_text(), 20, "it is suspended")
    with subprocess.Popen(["cat", mountpoint / "file"], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert not select.select([reader.stdout], [], [], 0.5)[0], "it waits"
        reader.kill()
        assert reader.wait(5) == -signal.SIGKILL
    rig.command("nfsfuse", "umount", mountpoint).succeeded()


def test_a_cut_is_not_seen_by_programs(rig: Rig) -> None:
    """SIGSTOP stands for it: the server does not answer for longer than a connection may be silent."""
    server = rig.server(arguments=["--lease", "3"])
    mountpoint = rig.mount(server)
    with (mountpoint / "file").open("w") as file:
        file.write("before ")
        file.flush()
        server.process.send_signal(signal.SIGSTOP)
        log = rig.log_of(mountpoint)
        poll_until(lambda: "is given up" in log.read_text(), 20, "the connection is given up")
        file.write("after")
        server.process.send_signal(signal.SIGCONT)
        poll_until(lambda: "connected to the server again" in log.read_text(), 20, "it is connected again")
    assert (server.export / "file").read_text() == "before after"


WRITER = """
import os
file = os.open("file", os.O_WRONLY | os.O_CREAT)
os.write(file, b"first ")
os.write(1, b"ready\\n")
input()
os.write(file, b"dirty ")
os.write(1, b"written\\n")
input()
"""


def test_what_is_dirty_waits_for_the_server_until_it_is_given_up(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    pid = daemon_of(mountpoint)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=mountpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert writer.stdin is not None
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.read(6) == b"ready\n"
        server.process.send_signal(signal.SIGSTOP)
        writer.stdin.write(b"\n")
        assert writer.stdout.read(8) == b"written\n"
        server.kill()
        rig.command("nfsfuse", "umount", "--lazy", mountpoint).succeeded()
        writer.kill()
    log = rig.log_of(mountpoint)
    poll_until(lambda: "bytes wait for the server" in log.read_text(), 10, "it says what it waits for")
    assert not has_ended(pid)
    assert end_process(pid, signal.SIGTERM)
    assert "bytes are lost" in log.read_text()


def test_a_vanished_client_lets_go_of_its_unlinked_files(rig: Rig) -> None:
    server = rig.server(arguments=["--lease", "2"])
    one, two = rig.mount(server), rig.mount(server)

    def held_by_the_server() -> list[str]:
        links = []
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it may close one while we look
                links.append(os.readlink(link))
        return [link for link in links if link.endswith("(deleted)")]

    descriptor = os.open(one / "file", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"content")
    (two / "file").unlink()
    assert os.pread(descriptor, 7, 0) == b"content"
    assert held_by_the_server()
    assert end_process(daemon_of(one), signal.SIGKILL)
    with pytest.raises(OSError, match="not connected"):
        os.pwrite(descriptor, b"more", 0)
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    poll_until(lambda: not held_by_the_server(), 10, "the file is gone from the server's disk")
    assert server.process.poll() is None
