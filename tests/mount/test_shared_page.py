"""Programs on several mounts that store into one page at the same time.

``--soak``: for as long as the promise is worded, with figures (``-s``).
"""

from __future__ import annotations

import pytest

from scripts.proof import increments
from scripts.proof.programs import Status, views
from tests.mount.conftest import TEST_SECONDS_MAX, Proof

SECONDS = 3.0
SECONDS_SOAK = 30.0

ROUNDS = 100
ROUNDS_SOAK = 2000


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def seconds(soak: bool) -> float:
    return SECONDS_SOAK if soak else SECONDS


@pytest.mark.parametrize(("writers", "readers"), [(2, 4), (3, 3), (6, 6)])
def test_no_increment_is_lost_and_no_reader_goes_back(
    proof: Proof, seconds: float, writers: int, readers: int
) -> None:
    """Each writer increments its own 8 bytes of one page through a mapping as fast as it can; the readers load
    them by mapping and by read(2)."""
    found = increments.count(proof.programs, proof.mounts, f"lost-{writers}", seconds, writers, readers)
    print(found)
    assert found.status == Status.HELD, found
    assert all(writer.stores > 0 for writer in found.writers), found
    assert all(reader.loads > 0 for reader in found.readers), found


def test_false_sharing_starves_nobody(proof: Proof, seconds: float) -> None:
    """Two clients storing into one page: each has at least a third of the turns."""
    found = increments.count(proof.programs, proof.mounts[:2], "false-sharing", seconds, 2, 0)
    print(found)
    assert found.status == Status.HELD, found
    turns = [writer.turns for writer in found.writers]
    assert sum(turns) >= 10, found
    assert min(turns) >= sum(turns) / 3, found
    assert max(writer.gap_ms for writer in found.writers) < seconds * 1000 / 3, found


@pytest.mark.parametrize("kind", ["fcntl", "ofd", "flock"])
def test_no_increment_under_a_lock_is_lost(proof: Proof, soak: bool, kind: str) -> None:
    """A counter that each of three mounts takes with a lock, adds to by mapping and by call, and gives back."""
    paths = views(proof.mounts, f"locked-{kind}")
    rounds = ROUNDS_SOAK if soak else ROUNDS
    proof.rig.deadline(TEST_SECONDS_MAX)
    ran = proof.programs.run("locked", kind, rounds, *paths, seconds=TEST_SECONDS_MAX)
    proof.rig.deadline(None)
    if ran.status == Status.NOT_EXCLUSIVE:
        pytest.skip("locks do not exclude across mounts yet")
    assert ran.status == Status.HELD, ran
    assert ran.output == f"counter {rounds * len(paths)}\n"


def test_ping_pong_in_a_page(proof: Proof) -> None:
    """It goes on; how fast is for `scripts/bench-pingpong` to say."""
    ran = proof.programs.run("pingpong", 100, *views(proof.mounts[:2], "ball"), seconds=60)
    assert ran.status == Status.HELD, ran


def test_appends_of_three_mounts(proof: Proof) -> None:
    ran = proof.programs.run("appends", 200, *views(proof.mounts, "appended"), seconds=60)
    assert ran.status == Status.HELD, ran
