"""Sequential consistency over mounts (promise 1). `scripts/litmus` runs the same for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.proof import litmus
from scripts.proof.programs import Programs, Status
from tests.mount.conftest import Proof

SECONDS = 0.25
"""For each kind of access and layout; ten of them are a test."""

SEED = 7


@pytest.mark.parametrize("mounts", [2, 3])
@pytest.mark.parametrize("test", litmus.TESTS)
def test_no_outcome_that_sequential_consistency_forbids(proof: Proof, test: str, mounts: int) -> None:
    for case in litmus.cases([test]):
        result = litmus.judge(proof.programs, proof.mounts[:mounts], case, SECONDS, SEED)
        assert result.rounds > 0
        assert result.held, result


@pytest.mark.parametrize("test", litmus.TESTS)
def test_one_file_without_mounts_holds(proof: Proof, tmp_path: Path, test: str) -> None:
    """The yardstick: what the kernel does for one file, under two names, is allowed."""
    paths = [tmp_path / "file", tmp_path / "file"]
    for case in litmus.cases([test]):
        assert litmus.judge_paths(proof.programs, paths, case, 0.05, SEED).held


@pytest.mark.parametrize("test", litmus.TESTS)
def test_two_files_are_told_from_one(proof: Proof, tmp_path: Path, test: str) -> None:
    """And the yardstick measures: two files that should be one break every litmus test."""
    case = litmus.Case(test, "map", "map", "two")
    result = litmus.judge_paths(proof.programs, [tmp_path / "one", tmp_path / "two"], case, 0.2, SEED)
    assert result.status == Status.BROKEN


def _allowed(programs: Programs, path: Path, test: str) -> set[str]:
    case = litmus.Case(test, "map", "map", "one")
    return set(litmus.judge_paths(programs, [path, path], case, 0.01, SEED).outcomes)


def test_what_is_allowed_is_what_the_literature_allows(proof: Proof, tmp_path: Path) -> None:
    """The program enumerates interleavings; here is what must come out (loads, then final values)."""
    every = {f"{a}{b}/11" for a in "01" for b in "01"}
    assert _allowed(proof.programs, tmp_path / "mp", "MP") == every - {"10/11"}
    assert _allowed(proof.programs, tmp_path / "sb", "SB") == every - {"00/11"}
    assert _allowed(proof.programs, tmp_path / "lb", "LB") == every - {"11/11"}
    every = {f"{a}{b}{c}{d}/11" for a in "01" for b in "01" for c in "01" for d in "01"}
    assert _allowed(proof.programs, tmp_path / "iriw", "IRIW") == every - {"1010/11"}
