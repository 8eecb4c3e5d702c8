"""How late a mount sees what another program changes directly in the export, and what watching costs.

    python -m scripts.proof.bench_direct [--changes N] [--files N]

Times are from the return of the system call in the export until the mount shows the change, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from scripts.rig.processes import stat_fields
from scripts.rig.rig import Rig, Server

SEEN_SECONDS_MAX = 10.0
"""Until a change is given up."""

CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@contextmanager
def mounted(watch: str) -> Iterator[tuple[Path, Server]]:
    """A mount, and its server, which watches like this."""
    with Rig() as rig:
        rig.deadline(600)
        server = rig.server(arguments=["--watch", watch])
        yield rig.mount(server), server


def lateness(change: Callable[[], object], seen: Callable[[], bool]) -> float:
    """Milliseconds from *change* to *seen*."""
    assert not seen(), "it is there before it was made"
    change()
    made = time.perf_counter()
    while not seen():
        if time.perf_counter() - made > SEEN_SECONDS_MAX:
            raise TimeoutError("the change is not seen")
    return (time.perf_counter() - made) * 1000


def one_of_each(mount: Path, export: Path) -> dict[str, float]:
    """A file's life in the export, seen from the mount at each step."""
    in_export, in_mount = export / "file", mount / "file"
    found = {
        "create": lateness(lambda: in_export.write_bytes(b"0"), in_mount.exists),
        "chmod": lateness(lambda: in_export.chmod(0o600), lambda: in_mount.stat().st_mode & 0o777 == 0o600),
    }
    assert in_mount.read_bytes() == b"0"
    found["write"] = lateness(lambda: in_export.write_bytes(b"1"), lambda: in_mount.read_bytes() == b"1")
    found["truncate"] = lateness(lambda: os.truncate(in_export, 9), lambda: in_mount.stat().st_size == 9)
    found["unlink"] = lateness(in_export.unlink, lambda: not in_mount.exists())
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process so far, user and system (proc(5), stat)."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND


def creations(mount: Path, server: Server, files: int) -> str:
    """Empty files are made in the mount by one program, one after the other: how fast, and what the server
    has to do for each. The latter tells also on a machine that is busy with something else."""
    used, began = cpu_seconds(server.process.pid), time.perf_counter()
    for file in range(files):
        os.close(os.open(mount / f"{file}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    rate = files / (time.perf_counter() - began)
    each = (cpu_seconds(server.process.pid) - used) / files * 1e6
    return f"{rate:.0f} creations a second, {each:.0f} us of the server's CPU each"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=300, help="of each kind (default: %(default)s)")
    parser.add_argument("--files", type=int, default=2000, help="created in the mount (default: %(default)s)")
    options = parser.parse_args()
    for watch in ("off", "fanotify", "inotify"):
        with mounted(watch) as (mount, server):
            print(f"{watch}: {creations(mount, server, options.files)}", flush=True)
            if watch == "off":
                continue
            rounds = [one_of_each(mount, server.export) for _ in range(options.changes)]
            for kind in rounds[0]:
                times = [found[kind] for found in rounds]
                print(f"  {kind}: median {median(times):.2f} ms, at most {max(times):.1f} ms", flush=True)


if __name__ == "__main__":
    main()
