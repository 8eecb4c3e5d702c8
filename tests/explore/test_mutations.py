"""Deliberate bugs are found by looking at every state of a small world."""

from __future__ import annotations

from typing import Final

import pytest

from tests.explore.explorer import explore, shortest
from tests.explore.programs import SmallWorld
from tests.explore.worlds import CROSSING, READ_AHEAD, SMALL
from tests.helpers.history import Violation
from tests.sim import mutations as the
from tests.sim.mutations import Mutation

STATES_MAX: Final = 2000

TWO_STORES: Final = SMALL["two stores"]
STORE_AND_LOAD: Final = SMALL["a store and a load"]
STORE_LOAD_AND_STORE: Final = SMALL["a store and a load, and a store"]


def told(mutation: Mutation, exc: Violation) -> str:
    return f" [{mutation.__name__}: {exc.__notes__[-1]}: {str(exc).splitlines()[0]}]"


@pytest.mark.parametrize(
    ("mutation", "small"),
    [
        (the.ack_before_write_back, STORE_AND_LOAD),
        (the.grant_before_ack, STORE_AND_LOAD),
        (the.keep_pages_after_a_recall, STORE_LOAD_AND_STORE),
        (the.skip_the_invalidation, TWO_STORES),
        (the.operations_are_not_parked, STORE_LOAD_AND_STORE),
        (the.rule_1_pages_of_unanswered_reads_are_invalidated_too, READ_AHEAD),
        (the.rule_2_operations_are_parked_while_the_kernel_invalidates, TWO_STORES),
        (the.rule_4_notifications_on_the_event_loop, STORE_AND_LOAD),
        (the.the_lease_never_runs_out, SMALL["a client with a dirty page that is cut off, and a load"]),
        (the.rule_5_shared_tokens_while_open_for_writing, TWO_STORES),
        (the.the_daemon_looks_at_who_waits_for_it, SMALL["a store and an execve, and a load"]),
        (the.growths_are_not_told, SMALL["a pwrite beyond the end, and a splice"]),
        (the.growths_are_answered_before_others_know, SMALL["a pwrite beyond the end, and a splice"]),
    ],
)
def test_a_deliberate_bug_is_found(
    mutation: Mutation, small: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation(monkeypatch)
    with pytest.raises(Violation) as caught:
        shortest(small, states_max=STATES_MAX)
    with capsys.disabled():
        print(told(mutation, caught.value), end="")


def test_a_daemon_with_too_few_workers_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deadlock 3: each client's only worker waits for a page of the other, and nobody takes in the dirty page
    that the other waits for. Deep down, so depth first."""
    the.rule_3_all_workers_wait_for_grants(monkeypatch)
    with pytest.raises(Violation, match="can never go on") as caught:
        explore(CROSSING, states_max=STATES_MAX)
    with capsys.disabled():
        print(told(the.rule_3_all_workers_wait_for_grants, caught.value), end="")
