"""Where it was measured, for the record."""

from __future__ import annotations

import datetime
import mmap
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from scripts.benchmark.systems import System


def describe(
    directory: Path, systems: Iterable[type[System]], options: Mapping[str, object]
) -> dict[str, object]:
    """Machine, kernel, versions, and how it was called."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processors": len(os.sched_getaffinity(0)),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "memory_mib": int((_field(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]) // 1024,
        "kernel": platform.release(),
        "filesystem": _filesystem(directory),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "systems": {system.name: system.version() for system in systems},
        "options": dict(options),
    }


def _field(path: Path, name: str) -> str | None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _filesystem(directory: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def sentence(about: Mapping[str, object]) -> str:
    """One line of it for people."""
    systems = about["systems"]
    assert isinstance(systems, dict)
    versions = ", ".join(f"{name} ({version})" for name, version in systems.items() if name != "local")
    return (
        f"{about['processors']} processors ({about['processor']}), {about['memory_mib']} MiB, "
        f"Linux {about['kernel']}, exports on {about['filesystem']}, load before {about['load_before']:.1f}; "
        f"{versions}"
    )


BLOCK_BYTES: Final = 256 << 20

AVAILABLE_PART: Final = 0.75
"""Of the memory that is available: the rest is for what measures and is measured."""


def touch_memory(wanted_bytes: int) -> int:
    """Write to so much memory, as far as it is available, and give it back; how many bytes it was.

    A guest's memory is given to it by its host when it is first used, which takes 6 to 15 us a page on some:
    more than any filesystem needs to move it. Whoever measures first would pay for all that come after."""
    available = int((_field(Path("/proc/meminfo"), "MemAvailable") or "0 kB").split()[0]) << 10
    left = wanted = min(wanted_bytes, int(available * AVAILABLE_PART)) // BLOCK_BYTES * BLOCK_BYTES
    blocks = []
    while left:
        block = mmap.mmap(-1, BLOCK_BYTES)
        block[:: mmap.PAGESIZE] = b"x" * (BLOCK_BYTES // mmap.PAGESIZE)
        blocks.append(block)
        left -= BLOCK_BYTES
    for block in blocks:
        block.close()
    return wanted
