"""The server killed and started again under programs that work in two mounts (promise 7). They see no error,
nothing that they were told is missing, and nothing was done twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.rig.rig import Failed, Rig, Server

WORKER = Path(__file__).parents[1] / "programs" / "restart_worker.py"
KILLS = 4
LEASE_SECONDS = 3


def restarted(rig: Rig, server: Server) -> Server:
    """Another server in place of *server*, which is dead."""
    return rig.server(server.export, server.address, arguments(rig))


def arguments(rig: Rig) -> list[str]:
    return ["--state-dir", str(rig.directory / "state"), "--lease", str(LEASE_SECONDS)]


def test_a_server_that_is_killed_again_and_again(rig: Rig) -> None:
    server = rig.server(listen="127.0.0.1:0", arguments=arguments(rig))
    mounts = [rig.mount(server), rig.mount(server)]
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, mount, f"worker{number}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, mount in enumerate(mounts)
    ]  # fmt: skip
    rng = random.Random(7)
    for _ in range(KILLS):
        time.sleep(0.5 + rng.random())
        server.kill()
        time.sleep(rng.choice([0.0, 0.3, LEASE_SECONDS * 1.5]))
        server = restarted(rig, server)
    time.sleep(1.0)
    counts, held = [], []
    for worker in workers:
        output, errors = worker.communicate("stop\n", timeout=60)
        assert worker.returncode == 0, errors
        first, *lines = output.splitlines()
        counts.append(int(first.split()[0]))
        held += [tuple(map(float, line.split())) for line in lines]
    assert min(counts) > 0
    expected = {f"worker{number}-{at}.done" for number, count in enumerate(counts) for at in range(count)}
    records = sorted(f"worker{number} {at}" for number, count in enumerate(counts) for at in range(count))
    for directory in (*mounts, server.export):
        assert set(os.listdir(directory)) - {".nfsfuse-orphans"} == {*expected, "log", "counter"}
        assert sorted((directory / "log").read_text().splitlines()) == records
        assert int((directory / "counter").read_text()) == sum(counts)
        for number, count in enumerate(counts):
            for at in range(count):
                assert (directory / f"worker{number}-{at}.done").read_text() == f"worker{number} {at}\n"
    for (_, end), (begin, _) in pairwise(sorted(held)):
        assert end <= begin, "two held one lock"
    for mount in mounts:
        log = rig.log_of(mount).read_text()
        assert "Traceback" not in log, log
        assert "has ended this mount's session" not in log, log
        rig.command("nfsfuse", "umount", mount).succeeded()
    assert "cannot have back" not in server.log.read_text()
    assert server.stop() == 0


class Holder:
    """A program that has a file open. Not this process: whoever starts a server has no file of its mount
    open, as the child would flush it on its way to exec(2), which waits for the server."""

    def __init__(self, program: str, mount: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go_on(self) -> None:
        output, _ = self.process.communicate("go on\n", timeout=60)
        assert self.process.returncode == 0, output


UNLINKED = """
import os, sys
file = open(sys.argv[1] + "/file", "w+b", buffering=0)
file.write(b"before")
os.unlink(sys.argv[1] + "/file")
print("ready", flush=True)
sys.stdin.readline()
file.write(b", after")
file.seek(0)
assert file.read() == b"before, after"
"""

WRITTEN = """
import sys
with open(sys.argv[1] + "/file", "w", buffering=1) as file:
    file.write("before\\n")
    print("ready", flush=True)
    sys.stdin.readline()
    file.write("after\\n")
"""


def test_a_file_that_is_open_and_unlinked_outlives_the_server(rig: Rig) -> None:
    server = rig.server(listen="127.0.0.1:0", arguments=arguments(rig))
    mount = rig.mount(server)
    holder = Holder(UNLINKED, mount)
    server.kill()
    server = restarted(rig, server)
    holder.go_on()
    assert os.listdir(mount) == []


def test_a_server_that_ends_in_order_is_a_pause_as_well(rig: Rig) -> None:
    server = rig.server(listen="127.0.0.1:0", arguments=arguments(rig))
    mount = rig.mount(server)
    holder = Holder(WRITTEN, mount)
    assert server.stop() == 0
    server = restarted(rig, server)
    holder.go_on()
    assert (server.export / "file").read_text() == "before\nafter\n"


def test_a_state_directory_in_use_is_refused(rig: Rig) -> None:
    server = rig.server(arguments=arguments(rig))
    with pytest.raises(Failed, match="in use by another nfsfuse-server"):
        rig.server(server.export, arguments=arguments(rig))


def test_a_client_that_does_not_come_back_delays_others_by_the_grace_time(rig: Rig) -> None:
    grace = ["--grace", "2"]
    server = rig.server(listen="127.0.0.1:0", arguments=[*arguments(rig), *grace])
    mounts = [rig.mount(server), rig.mount(server)]
    (mounts[0] / "file").write_text("content")
    daemon = rig.kernel_mount(mounts[0])
    assert daemon is not None
    server.kill()
    daemon.abort()  # its daemon dies without a word
    server = rig.server(server.export, server.address, [*arguments(rig), *grace])
    began = time.monotonic()
    assert (mounts[1] / "file").read_text() == "content"
    assert 1.0 < time.monotonic() - began < 20.0
    assert "has not come back in time" in server.log.read_text()
