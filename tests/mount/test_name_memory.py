"""Names that are cached are cheap to remember. `python -m scripts.proof.entries_memory` measures a million."""

from __future__ import annotations

from scripts.proof.entries_memory import measure
from scripts.rig.rig import Rig
from tests.mount.conftest import TEST_SECONDS_MAX

ENTRIES = 10_000

BYTES_MAX = 1024
"""The promise, of the daemon's memory for each entry. Measured here: some 900."""

SLACK_BYTES = 2 << 20
"""What a daemon takes for its first work of any kind, and does not give back."""


def test_an_entry_costs_less_than_a_kilobyte(rig: Rig) -> None:
    rig.deadline(2 * TEST_SECONDS_MAX)
    measured = measure(rig, ENTRIES, ENTRIES // 2, seconds_max=2 * TEST_SECONDS_MAX)
    assert measured.daemon_bytes * ENTRIES < BYTES_MAX * ENTRIES + SLACK_BYTES, measured
    assert measured.listings == 1 + 2 * -(-(ENTRIES // 2) // 2048), measured
