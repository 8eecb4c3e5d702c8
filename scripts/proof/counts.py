"""What the daemon of a mount has done: its own counts, and what it occupies."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfsfuse.cli import registry
from scripts.rig.processes import poll_until
from scripts.rig.rig import Rig

ANSWER_SECONDS_MAX: Final = 10.0

MARK: Final = "statistics: "


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of one mount (docs/client.md), since it began or between two moments."""

    upcalls: Counter[str]
    requests: Counter[str]
    writes_sent: int
    bytes_sent: int
    invalidations: int

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(
            self.upcalls - earlier.upcalls,
            self.requests - earlier.requests,
            self.writes_sent - earlier.writes_sent,
            self.bytes_sent - earlier.bytes_sent,
            self.invalidations - earlier.invalidations,
        )


def daemon_of(mount: Path) -> int:
    """The process that serves *mount*."""
    pid = registry.served_by(str(mount))
    assert pid is not None, f"nobody serves {mount}"
    return pid


def counts(rig: Rig, mount: Path) -> Counts:
    """Ask the daemon of one of the rig's mounts. Makes no request to the mount."""
    log = rig.log_of(mount)
    before = log.read_text().count(MARK)
    os.kill(daemon_of(mount), signal.SIGUSR1)
    poll_until(lambda: log.read_text().count(MARK) > before, ANSWER_SECONDS_MAX, "the daemon's statistics")
    told = json.loads(log.read_text().rpartition(MARK)[2].partition("\n")[0])
    return Counts(
        Counter(told["upcalls"]),
        Counter(told["requests"]),
        told["writes_sent"],
        told["bytes_sent"],
        told["invalidations"],
    )


def resident_bytes(pid: int) -> int:
    """Memory that a process occupies now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")
