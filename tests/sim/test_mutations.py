"""Deliberate bugs, each of which the simulation has to find within a few seeds: the checkers can fail.

Those called after a deadlock rule of the design switch off its remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import trio

from nfsfuse.engine.files import Files
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.session import Session
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.data_tokens import DataTokens, Phase, Revocation
from nfsfuse.protocol.tokens import TokenMode
from tests.helpers.history import Violation
from tests.sim.programs import RandomPrograms
from tests.sim.world import Options, simulate

SEEDS_MAX: Final = 25

Patch = Callable[[pytest.MonkeyPatch], None]


def ack_before_write_back(patch: pytest.MonkeyPatch) -> None:
    async def write_back_page(self: PageProtocol, file: Any, recall: Revocation) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    patch.setattr(PageProtocol, "write_back_page", write_back_page)
    patch.setattr(PageProtocol, "_check_k5", lambda *_: None)


def keep_pages_after_a_recall(patch: pytest.MonkeyPatch) -> None:
    def clear(self: PageProtocol, file: Any, recall: Revocation, kept: TokenMode) -> None:
        file.tokens.reduce(recall.start, recall.end, kept)

    patch.setattr(PageProtocol, "clear_page_uptodate", clear)
    patch.setattr(PageProtocol, "_check_k5", lambda *_: None)


def skip_the_invalidation(patch: pytest.MonkeyPatch) -> None:
    async def gather(self: PageProtocol, file: Any, recall: Revocation) -> None:
        await trio.lowlevel.checkpoint()
        file.tokens.in_kernel.delete(recall.start, recall.end)
        recall.close()

    patch.setattr(PageProtocol, "gather_all_mmap_users", gather)


def grants_applied_by_the_task_that_asked(patch: pytest.MonkeyPatch) -> None:
    original = Session.call

    async def call(self: Session, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        reply = await original(self, message, payload)
        await trio.sleep(0.0001)
        if apply is not None:
            apply(*reply)
        return reply

    patch.setattr(Session, "call", call)


def operations_are_not_parked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "parked", lambda *_: False)


def writes_under_shared(patch: pytest.MonkeyPatch) -> None:
    original = DataTokens.holds
    patch.setattr(
        DataTokens,
        "holds",
        lambda self, start, end, mode: original(self, start, end, min(mode, TokenMode.SHARED)),
    )

    async def keep_shared(self: Files, file: Any) -> None:  # else K2 leaves no SHARED to write under
        await trio.lowlevel.checkpoint()

    patch.setattr(Files, "_give_up_shared", keep_shared)


def overlapping_recalls_do_not_take_turns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "may_begin", lambda self, revocation: not revocation.waits_for)


def page_write_back_asks_for_attributes(patch: pytest.MonkeyPatch) -> None:
    def may_extend(file: Any, end: int, page: bool, start: int, stop: int) -> bool:
        known = file.size()
        return known is None or end > known

    patch.setattr(Writer, "_may_extend", staticmethod(may_extend))


def rule_1_pages_of_unanswered_reads_are_invalidated_too(patch: pytest.MonkeyPatch) -> None:
    def read_arrived(self: DataTokens, start: int, end: int) -> None:
        self._reads.append((start, end))

    patch.setattr(DataTokens, "read_arrived", read_arrived)


def rule_2_operations_are_parked_while_the_kernel_invalidates(patch: pytest.MonkeyPatch) -> None:
    def parked(self: DataTokens, start: int, end: int) -> bool:
        return any(
            revocation.phase is not Phase.PENDING and revocation.start < end and start < revocation.end
            for revocation in self.revocations
        )

    patch.setattr(DataTokens, "parked", parked)


def rule_5_shared_tokens_while_open_for_writing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "reading_mode", lambda _: TokenMode.SHARED)

    def granted(self: DataTokens, start: int, end: int, mode: TokenMode) -> None:
        for begin, stop in self._weaker(start, end, mode):
            self.held.set(begin, stop, mode)

    patch.setattr(DataTokens, "granted", granted)


@pytest.mark.parametrize(
    "mutation",
    [
        ack_before_write_back,
        keep_pages_after_a_recall,
        skip_the_invalidation,
        grants_applied_by_the_task_that_asked,
        operations_are_not_parked,
        writes_under_shared,
        overlapping_recalls_do_not_take_turns,
        page_write_back_asks_for_attributes,
        rule_1_pages_of_unanswered_reads_are_invalidated_too,
        rule_2_operations_are_parked_while_the_kernel_invalidates,
        rule_5_shared_tokens_while_open_for_writing,
    ],
)
def test_a_deliberate_bug_is_found(mutation: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            simulate(Options(seed, 2, check_every=3), RandomPrograms(30))
        except Violation as exc:
            print(f"found with seed {seed}: {str(exc).splitlines()[0]}")
            return
    pytest.fail(f"not found within {SEEDS_MAX} seeds")
