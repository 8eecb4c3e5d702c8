"""What the daemon (and the server) remember of each name that a client has cached, in bytes.

    python -m scripts.proof.entries_memory [--entries N] [--per-directory N]

Makes a tree, has find(1) list it through a mount, and compares what the processes occupy before and after.
Then everything is removed elsewhere, and must be forgotten.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.proof.counts import counts, daemon_of, resident_bytes
from scripts.rig.rig import Rig


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of memory for each of *entries*; *seconds* that listing them took, in *listings* requests."""

    entries: int
    daemon_bytes: float
    server_bytes: float
    seconds: float
    listings: int

    def __str__(self) -> str:
        return (
            f"{self.entries} entries: {self.daemon_bytes:.0f} bytes each in the daemon, "
            f"{self.server_bytes:.0f} in the server; listed in {self.seconds:.1f} s, {self.listings} ReadDirs"
        )


def fill(export: Path, entries: int, per_directory: int) -> None:
    """Make *entries* empty files, *per_directory* in each directory."""
    for first in range(0, entries, per_directory):
        directory = export / f"directory-{first // per_directory:05}"
        directory.mkdir()
        for number in range(first, min(first + per_directory, entries)):
            os.mknod(directory / f"entry-{number:08}")


def measure(rig: Rig, entries: int, per_directory: int, seconds_max: float) -> Measured:
    """Make a server, fill its export, mount it, list it. Raises TimedOut."""
    server = rig.server()
    fill(server.export, entries, per_directory)
    mount = rig.mount(server)
    daemon = daemon_of(mount)
    before = resident_bytes(daemon), resident_bytes(server.process.pid)
    begin = time.perf_counter()
    found = rig.command("find", mount, "-type", "f", "-printf", "x", seconds=seconds_max).succeeded()
    seconds = time.perf_counter() - begin
    assert len(found.output) == entries, len(found.output)
    after = resident_bytes(daemon), resident_bytes(server.process.pid)
    return Measured(
        entries,
        (after[0] - before[0]) / entries,
        (after[1] - before[1]) / entries,
        seconds,
        counts(rig, mount).requests["ReadDir"],
    )


def main() -> None:
    """Measure as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--per-directory", type=int, default=10_000)
    arguments = parser.parse_args()
    with Rig() as rig:
        print(measure(rig, arguments.entries, arguments.per_directory, seconds_max=3600.0))


if __name__ == "__main__":
    main()
