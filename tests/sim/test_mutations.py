"""Deliberate bugs, each of which the simulation has to find within a few seeds."""

from __future__ import annotations

from typing import Final

import pytest

from tests.helpers.history import Violation
from tests.sim import mutations as the
from tests.sim.mutations import Mutation
from tests.sim.programs import RandomPrograms
from tests.sim.world import Options, simulate

SEEDS_MAX: Final = 50


@pytest.mark.parametrize(
    "mutation",
    [
        the.ack_before_write_back,
        the.grant_before_ack,
        the.keep_pages_after_a_recall,
        the.skip_the_invalidation,
        the.grants_applied_by_the_task_that_asked,
        the.operations_are_not_parked,
        the.shared_becomes_exclusive_without_a_recall,
        the.overlapping_recalls_do_not_take_turns,
        the.direct_writes_leave_mapped_pages_alone,
        the.rule_1_pages_of_unanswered_reads_are_invalidated_too,
        the.rule_2_operations_are_parked_while_the_kernel_invalidates,
        the.rule_3_all_workers_wait_for_grants,
        the.rule_4_notifications_on_the_event_loop,
        the.rule_5_shared_tokens_while_open_for_writing,
    ],
)
def test_a_deliberate_bug_is_found(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            simulate(Options(seed, 2, check_every=3), RandomPrograms(30))
        except Violation as exc:
            with capsys.disabled():
                print(f" [{mutation.__name__}: seed {seed}: {str(exc).splitlines()[0][:100]}]", end="")
            return
    pytest.fail(f"not found within {SEEDS_MAX} seeds")
