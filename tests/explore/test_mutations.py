"""Deliberate bugs are found by looking at every state of a small world."""

from __future__ import annotations

from typing import Final

import pytest

from tests.explore.explorer import explore
from tests.explore.programs import Script, SmallWorld, read, store
from tests.explore.worlds import SMALL
from tests.helpers.history import Violation
from tests.sim import mutations as the
from tests.sim.mutations import Mutation

STATES_MAX: Final = 20_000

TWO_STORES = SMALL["two stores"]
DIRECT = SMALL["a pwrite and a store"]
STORE_AND_LOAD = SMALL["a store and a load"]
BUSY = SmallWorld((Script(0, (store(1),)), Script(0, (read(),), mapped=False), Script(1, (store(2),))))


@pytest.mark.parametrize(
    ("mutation", "small"),
    [
        (the.ack_before_write_back, STORE_AND_LOAD),
        (the.grant_before_ack, TWO_STORES),
        (the.keep_pages_after_a_recall, STORE_AND_LOAD),
        (the.skip_the_invalidation, TWO_STORES),
        (the.shared_becomes_exclusive_without_a_recall, TWO_STORES),
        (the.operations_are_not_parked, TWO_STORES),
        (the.parked_operations_are_not_woken_by_a_further_pass, BUSY),
        (the.direct_writes_leave_mapped_pages_alone, BUSY),
        (the.direct_writes_do_not_wait_for_an_invalidation, DIRECT),
        (the.rule_1_pages_of_unanswered_reads_are_invalidated_too, STORE_AND_LOAD),
        (the.rule_2_operations_are_parked_while_the_kernel_invalidates, TWO_STORES),
        (the.rule_3_all_workers_wait_for_grants, TWO_STORES),
        (the.rule_4_notifications_on_the_event_loop, TWO_STORES),
        (the.rule_5_shared_tokens_while_open_for_writing, TWO_STORES),
    ],
)
def test_a_deliberate_bug_is_found(
    mutation: Mutation, small: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation(monkeypatch)
    with pytest.raises(Violation) as caught:
        explore(small, states_max=STATES_MAX)
    with capsys.disabled():
        print(
            f" [{mutation.__name__}: {caught.value.__notes__[-1]}, {str(caught.value).splitlines()[0]}]", end=""
        )
