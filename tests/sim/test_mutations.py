"""Deliberate bugs, each of which the simulation has to find within a few seeds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from tests.helpers.history import Violation
from tests.sim import mutations as the
from tests.sim.mutations import Mutation
from tests.sim.names import NamesAndLocks
from tests.sim.partitions import Partitioned
from tests.sim.programs import RandomPrograms
from tests.sim.world import CUTS_PER_SECOND, Options, Play, partitioned, simulate

SEEDS_MAX: Final = 50

NEVER_CHECKED: Final = 1 << 62
"""Steps between two checks of the invariants: what programs see has to tell."""


def _options(seed: int) -> Options:
    return Options(seed, 2, check_every=3)


def _with_cuts(seed: int) -> Options:
    return Options(seed, 3, check_every=5, cuts_per_second=CUTS_PER_SECOND)


def _with_restarts(seed: int) -> Options:
    return Options(seed, 3, check_every=5, restarts=6)


def _with_kills(seed: int) -> Options:
    return Options(seed, 3, check_every=5, killed=0.2, later=0.5)


def _judged_by_reads(seed: int) -> Options:
    return replace(partitioned(seed), check_every=NEVER_CHECKED)


def find(
    mutation: Mutation,
    options: Callable[[int], Options],
    play: Play,
    capsys: pytest.CaptureFixture[str],
) -> Violation:
    """What is found of *mutation* in the first of *SEEDS_MAX* seeds that finds something."""
    for seed in range(SEEDS_MAX):
        try:
            simulate(options(seed), play)
        except Violation as exc:
            with capsys.disabled():
                print(f" [{mutation.__name__}: seed {seed}: {str(exc).splitlines()[0][:100]}]", end="")
            return exc
    pytest.fail(f"not found within {SEEDS_MAX} seeds")


@pytest.mark.parametrize(
    "mutation",
    [
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
    find(mutation, _options, RandomPrograms(30), capsys)


STALE: Final = "P8|at once"
"""Told by the invariant, or by a read that no order explains."""


@pytest.mark.parametrize(
    ("mutation", "options", "play", "told"),
    [
        (the.ack_before_write_back, _options, RandomPrograms(30), "saw|sees|at once|records"),
        (the.who_was_killed_is_entitled, _with_kills, RandomPrograms(30), "have not ended"),
        (the.the_daemon_looks_at_who_waits_for_it, _options, RandomPrograms(30), "have not ended"),
        (the.the_lease_never_runs_out, partitioned, Partitioned(), STALE),
        (the.the_lease_never_runs_out, _judged_by_reads, Partitioned(), "at once|before"),
        (the.the_lease_is_counted_from_the_answer, partitioned, Partitioned(), STALE),
        (the.replay_without_the_journal, _with_restarts, NamesAndLocks(25), "not everything was done once"),
        (the.replay_without_the_reply_cache, _with_cuts, NamesAndLocks(25), "not everything was done once"),
    ],
)
def test_a_deliberate_bug_is_found_by_its_checker(
    mutation: Mutation,
    options: Callable[[int], Options],
    play: Play,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not by what it happens to break besides."""
    mutation(monkeypatch)
    assert re.search(told, str(find(mutation, options, play, capsys)))
