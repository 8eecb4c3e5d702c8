"""How mounts end: unmounted, busy, told to end, killed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
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
    assert end_process(daemon_of(mountpoint), signal.SIGKILL)
    # Not unmounted: a backup would take the directory for empty.
    assert rig.kernel_mount(mountpoint) is not None
    for access in (os.listdir, os.statvfs):
        with pytest.raises(OSError, match="not connected") as caught:
            access(mountpoint)
        assert caught.value.errno == errno.ENOTCONN

    log = rig.log_of(mountpoint)
    rig.command("nfsfuse", "mount", server.address, mountpoint, "-o", f"log={log}").succeeded()
    assert (mountpoint / "file").read_text() == "content"
    assert "removed a dead mount" in log.read_text()
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert rig.kernel_mount(mountpoint) is None, "the dead mount is still below"


def test_a_dead_mount_can_be_unmounted(rig: Rig) -> None:
    mountpoint = rig.mount(rig.server())
    assert end_process(daemon_of(mountpoint), signal.SIGKILL)
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert rig.kernel_mount(mountpoint) is None


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


def test_the_server_goes_away(rig: Rig) -> None:
    """Nothing is served from a cache, nothing hangs, and the mount stays where it is."""
    server = rig.server()
    mountpoint = rig.mount(server)
    (mountpoint / "file").write_text("content")
    server.kill()
    with pytest.raises(OSError, match="Input/output error"):
        (mountpoint / "file").read_text()
    assert rig.kernel_mount(mountpoint) is not None
    poll_until(lambda: "is lost" in rig.log_of(mountpoint).read_text(), 10, "it is logged")
    rig.command("nfsfuse", "umount", mountpoint).succeeded()


def test_a_vanished_client_lets_go_of_its_unlinked_files(rig: Rig) -> None:
    server = rig.server()
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
