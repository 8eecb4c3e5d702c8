"""A mount's daemon that dies of a bug says so in its log: nothing else of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DYING = """
import sys
from nfsfuse.cli import mount
from nfsfuse.cli.daemon import in_background
from nfsfuse.cli.options import parse_options
from nfsfuse.rpc.address import parse_address

async def run(self, replaces):
    if self._options.soft:
        self._launch.ready()
    raise AssertionError("the last words")

mount._Mount.run = run
address, options = parse_address("127.0.0.1:1"), parse_options(sys.argv[3:])
sys.exit(in_background(lambda launch: mount.serve_mount(address, sys.argv[1], options, sys.argv[2], launch)))
"""


def died(tmp_path: Path, *options: str) -> tuple[int, str, str]:
    """Its command's exit status and complaint, and the log."""
    mountpoint, log = tmp_path / "mnt", tmp_path / "log"
    mountpoint.mkdir()
    alive, of_the_daemon = os.pipe()
    ended = subprocess.run(
        [sys.executable, "-c", DYING, mountpoint, log, *options],
        timeout=60, check=False, text=True, stderr=subprocess.PIPE, pass_fds=[of_the_daemon],
    )  # fmt: skip
    os.close(of_the_daemon)
    with os.fdopen(alive, "rb") as pipe:
        assert pipe.read() == b""  # at its end
    return ended.returncode, ended.stderr, log.read_text()


def test_a_daemon_that_dies_before_there_is_a_mount_tells_its_command_too(tmp_path: Path) -> None:
    status, complaint, log = died(tmp_path)
    assert (status, complaint) == (1, "nfsfuse: the mount's daemon died: AssertionError('the last words')\n")
    assert f"CRITICAL the daemon of {tmp_path}/mnt died of a bug" in log
    assert "AssertionError: the last words" in log
    assert "Traceback" in log


def test_a_daemon_that_dies_later_leaves_its_reason_in_the_log(tmp_path: Path) -> None:
    status, complaint, log = died(tmp_path, "soft")
    assert (status, complaint) == (0, "")
    assert "AssertionError: the last words" in log
