"""A daemon whose event loop does not turn any more does not keep programs waiting for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from scripts.rig.processes import poll_until
from scripts.rig.rig import BIN, Rig
from scripts.rig.sweep import end_process, has_ended
from tests.mount.test_crashes import crashing_mount, is_not_connected

SECONDS_MAX = 60.0


@pytest.mark.parametrize(("fault", "function"), [("blocks", "blocks"), ("turns for ever", "turns_for_ever")])
def test_programs_that_wait_for_it_are_let_go(rig: Rig, fault: str, function: str) -> None:
    server = rig.server(arguments=["--lease", "3"])
    mountpoint, trigger = crashing_mount(rig, server, fault, options="watchdog=6")
    pid = rig.daemon_of(mountpoint)
    (mountpoint / "file").write_text("content")
    rig.deadline(2 * SECONDS_MAX)
    trigger.touch()
    with subprocess.Popen(["stat", mountpoint / "file"], stderr=subprocess.PIPE, text=True) as program:
        _, said = program.communicate(timeout=SECONDS_MAX)
        assert program.returncode == 1
        assert "file" in said
    log = rig.log_of(mountpoint)
    poll_until(lambda: "was aborted" in log.read_text(), 10, "it is said")
    assert "has not turned for 3 s; its threads:" in log.read_text()
    assert f"in {function}" in log.read_text()
    assert is_not_connected(mountpoint), "a dead mount"
    assert not has_ended(pid)
    assert end_process(pid), "and nothing holds it"
    rig.command("nfsfuse", "mount", server.address, mountpoint).succeeded()
    assert (mountpoint / "file").read_text() == "content"


def test_without_it_the_guardian_only_tells(rig: Rig) -> None:
    server = rig.server()
    mountpoint, trigger = crashing_mount(rig, server, "blocks", options="nowatchdog")
    log = rig.log_of(mountpoint)
    trigger.touch()
    with subprocess.Popen(["stat", mountpoint / "file"], stderr=subprocess.DEVNULL) as program:
        poll_until(lambda: "in blocks" in log.read_text(), SECONDS_MAX, "it is told")
        time.sleep(3)
        assert program.poll() is None
        assert "was aborted" not in log.read_text()
        assert end_process(rig.daemon_of(mountpoint))
        assert program.wait(SECONDS_MAX) == 1


def test_a_log_that_is_not_read_keeps_nobody_waiting(rig: Rig) -> None:
    """As of a `tee` that waits in the mount itself."""
    server = rig.server()
    mountpoint = rig.mountpoint()
    with subprocess.Popen(
        [BIN / "nfsfuse", "mount", "-f", server.address, mountpoint, "-o", "loglevel=debug"],
        stderr=subprocess.PIPE, env=rig.environment,
    ) as daemon:  # fmt: skip
        poll_until(lambda: rig.kernel_mount(mountpoint) is not None, SECONDS_MAX, "it is mounted")
        rig.deadline(SECONDS_MAX)
        for number in range(500):  # some hundred bytes of log each, where a pipe takes 64 KiB
            (mountpoint / f"{number}").write_text("content")
        rig.command("umount", mountpoint).succeeded()
        _, said = daemon.communicate(timeout=SECONDS_MAX)
        assert len(said) > 128 << 10
        assert daemon.returncode == 0


def test_a_daemon_that_is_stopped_is_no_daemon_that_does_not_turn(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server, options="watchdog=2")
    (mountpoint / "file").write_text("content")
    pid = rig.daemon_of(mountpoint)
    os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen(
        [sys.executable, "-c", f"print(open({str(mountpoint / 'file')!r}).read())"], stdout=subprocess.PIPE
    ) as program:
        time.sleep(7)
        os.kill(pid, signal.SIGCONT)
        assert program.communicate(timeout=SECONDS_MAX)[0] == b"content\n"
    assert "has not turned" not in rig.log_of(mountpoint).read_text()
