"""The toy filesystem leaves no mount behind, however its test ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.rig.kernel import fuse_mounts_below
from scripts.rig.processes import poll_until
from scripts.rig.sweep import has_ended
from tests.fuse.toymount import TIMEOUT_SECONDS, environment

OWNER = """
import os, signal, sys
from pathlib import Path
from tests.fuse.toymount import Daemon
daemon = Daemon(Path(sys.argv[1]))
print(daemon.process.pid, flush=True)
os.killpg(0, int(sys.argv[2]))
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_test_run_that_is_killed_leaves_no_mount(tmp_path: Path, number: signal.Signals) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    owner = subprocess.run(
        [sys.executable, "-c", OWNER, mountpoint, str(int(number))],
        timeout=TIMEOUT_SECONDS, check=False, text=True, stdout=subprocess.PIPE, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    assert owner.returncode == -number
    try:
        poll_until(lambda: has_ended(int(owner.stdout)), TIMEOUT_SECONDS, "the daemon ends")
        assert not fuse_mounts_below(tmp_path)
    finally:
        for mount in fuse_mounts_below(tmp_path):
            mount.abort()
            mount.detach()
