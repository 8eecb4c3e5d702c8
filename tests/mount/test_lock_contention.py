"""Two mounts, four processes each, one counter under one lock: the count is exact, and nobody waits for ever.

``--soak``: 10,000 rounds of each kind; the figures are printed (``-s``).
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair

PROCESSES = 8
ROUNDS = 60
ROUNDS_SOAK = 1250
SECONDS_MAX = 300.0

FAIR_WAITS = 25
"""The longest wait may be that many times the mean one: in a fair queue of 8 everybody waits alike, but for
what else the machine does meanwhile."""


@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_a_counter_under_a_lock_is_exact(
    mounts: Mounts,
    pair: Pair,
    program: Callable[[str], Path],
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    rounds = ROUNDS_SOAK if request.config.getoption("--soak") else ROUNDS
    mounts.rig.deadline(SECONDS_MAX)
    (pair.export / "counter").write_bytes(bytes(8))
    counting = [
        subprocess.Popen(
            [program("lock_counter"), kind, mount / "counter", str(rounds)], stdout=subprocess.PIPE, text=True
        )
        for mount in (pair.one, pair.two)
        for _ in range(PROCESSES // 2)
    ]
    said = [process.communicate(timeout=SECONDS_MAX)[0] for process in counting]
    assert [process.returncode for process in counting] == [0] * PROCESSES
    for mount in (pair.one, pair.two):
        assert struct.unpack("=Q", (mount / "counter").read_bytes()) == (rounds * PROCESSES,)
    longest = max(int(line.split()[0]) for line in said) / 1000
    total = max(int(line.split()[1]) for line in said) / 1000
    print(f"\n{kind}: {rounds * PROCESSES} rounds in {total / 1000:.1f} s, longest wait {longest:.1f} ms")
    assert longest < FAIR_WAITS * total / rounds, "somebody starves"
