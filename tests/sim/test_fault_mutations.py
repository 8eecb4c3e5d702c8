"""Deliberate bugs, each of which the simulation with faults has to find within a few seeds."""

from __future__ import annotations

from typing import Final

import pytest

from tests.helpers.history import Violation
from tests.sim.fault_mutations import FOUND_UNDER, Mutation
from tests.sim.fault_programs import FaultPrograms
from tests.sim.fault_swarm import options, strikes
from tests.sim.world import simulate

SEEDS: Final = range(7, 32)


@pytest.mark.parametrize("mutation", FOUND_UNDER)
def test_a_deliberate_bug_is_found(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation(monkeypatch)
    for seed in SEEDS:
        try:
            simulate(options(seed), FaultPrograms(strikes(*FOUND_UNDER[mutation])))
        except Violation as exc:
            with capsys.disabled():
                print(f" [{mutation.__name__}: seed {seed}: {str(exc).splitlines()[0][:100]}]", end="")
            return
    pytest.fail(f"not found within {len(SEEDS)} seeds")
