"""What a client may do under the tokens of one file: scenarios, and random sequences under `check`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nfsfuse.machines.data_tokens import DataTokens, Phase, Revocation
from nfsfuse.protocol.tokens import RANGE_END, TokenMode

NONE, SHARED, EXCLUSIVE = TokenMode.NONE, TokenMode.SHARED, TokenMode.EXCLUSIVE
P = 4096


def holding(mode: TokenMode, start: int = 0, end: int = RANGE_END, *, writers: int = 0) -> DataTokens:
    tokens = DataTokens()
    tokens.writers = writers
    tokens.granted(start, end, mode)
    return tokens


def test_clean_pages_stay_in_a_recall_to_shared_unless_others_see_them_differently() -> None:
    tokens = holding(EXCLUSIVE)
    assert tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED))
    assert not tokens.may_keep_pages(tokens.revoke(0, 4 * P, NONE))
    tokens.refuse(P, 2 * P)
    assert not tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED))
    assert tokens.may_keep_pages(tokens.revoke(2 * P, 4 * P, SHARED))
    tokens.reduce(0, 4 * P, NONE)
    tokens.granted(0, 4 * P, EXCLUSIVE)
    assert tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED)), "the page was given up"
    tokens.answered(P, 2 * P)
    tokens.refuse(P, 2 * P)
    recall = tokens.revoke(0, 4 * P, EXCLUSIVE)
    assert tokens.invalidate(recall) == [(P, 2 * P)]
    assert not tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED)), "the kernel is still dropping it"
    assert tokens.invalidate(recall) == []
    assert tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED)), "the kernel has dropped it"
    tokens.writers = 1
    assert not tokens.may_keep_pages(tokens.revoke(0, 4 * P, SHARED)), "K2"


# --- admission ---


@dataclass(frozen=True)
class Admission:
    """Whether an operation on page 1 runs, waits for the recall's end (parked), or lets the size grow only
    by the write-back (invalidating), while a recall of *recalled* is in *phase*."""

    phase: Phase
    recalled: tuple[int, int]
    parked: bool
    invalidating: bool


ADMISSIONS = (
    Admission(Phase.PENDING, (P, 2 * P), parked=False, invalidating=False),
    Admission(Phase.INVALIDATING, (P, 2 * P), parked=False, invalidating=True),
    Admission(Phase.CLOSED, (P, 2 * P), parked=True, invalidating=False),
    Admission(Phase.INVALIDATING, (0, RANGE_END), parked=False, invalidating=True),
    Admission(Phase.CLOSED, (0, RANGE_END), parked=True, invalidating=False),
    # beside it nothing matters
    Admission(Phase.INVALIDATING, (0, P), parked=False, invalidating=False),
    Admission(Phase.CLOSED, (0, P), parked=False, invalidating=False),
    Admission(Phase.CLOSED, (2 * P, 3 * P), parked=False, invalidating=False),
)


@pytest.mark.parametrize("row", ADMISSIONS, ids=lambda row: f"{row.phase.name}-{row.recalled}")
def test_admission_while_a_recall_is_in_progress(row: Admission) -> None:
    tokens = holding(EXCLUSIVE)
    revocation = tokens.revoke(*row.recalled, NONE)
    revocation.phase = row.phase
    assert tokens.parked(P, 2 * P) is row.parked
    assert tokens.invalidating(P, 2 * P) is row.invalidating
    assert tokens.holds(P, 2 * P, EXCLUSIVE), "a token is held until the recall ends"


HOLDS = (
    # held pieces; asked for; at which mode; answer
    ((), (0, P), SHARED, False),
    (((0, P, SHARED),), (0, P), SHARED, True),
    (((0, P, SHARED),), (0, P), EXCLUSIVE, False),
    (((0, P, EXCLUSIVE),), (0, P), SHARED, True),
    (((0, P, SHARED),), (0, 2 * P), SHARED, False),
    (((0, P, SHARED), (P, 2 * P, EXCLUSIVE)), (0, 2 * P), SHARED, True),
    (((0, P, SHARED), (P, 2 * P, EXCLUSIVE)), (0, 2 * P), EXCLUSIVE, False),
    (((0, P, SHARED), (2 * P, 3 * P, SHARED)), (0, 3 * P), SHARED, False),
    (((P, 2 * P, SHARED),), (0, 2 * P), SHARED, False),
    (((0, P, SHARED),), (P, P), SHARED, True),
)


@pytest.mark.parametrize(("held", "asked", "mode", "answer"), HOLDS)
def test_a_range_is_held_only_whole(
    held: tuple[tuple[int, int, TokenMode], ...], asked: tuple[int, int], mode: TokenMode, answer: bool
) -> None:
    tokens = DataTokens()
    for piece in held:
        tokens.granted(*piece)
    assert tokens.holds(*asked, mode) is answer


# --- grants, and K2 ---


def test_a_weaker_grant_takes_nothing_away() -> None:
    tokens = holding(EXCLUSIVE, P, 2 * P)
    tokens.granted(0, 3 * P, SHARED)
    assert tokens.everything() == [(0, P, SHARED), (P, 2 * P, EXCLUSIVE), (2 * P, 3 * P, SHARED)]


def test_open_for_writing_reads_ask_for_exclusive_tokens() -> None:
    tokens = DataTokens()
    assert tokens.reading_mode() is SHARED
    tokens.writers = 1
    assert tokens.reading_mode() is EXCLUSIVE


def test_open_for_writing_a_shared_grant_is_not_kept() -> None:
    tokens = holding(EXCLUSIVE, 0, P, writers=1)
    assert not tokens.granted(2 * P, 3 * P, SHARED)
    assert tokens.everything() == [(0, P, EXCLUSIVE)]
    tokens.check()


def test_open_for_writing_a_shared_grant_of_what_is_held_exclusively_does_not_go_back() -> None:
    """It would take the stronger token along: a token is given back by its range."""
    tokens = holding(EXCLUSIVE, 0, P, writers=1)
    tokens.granted(0, P, SHARED)
    assert tokens.everything() == [(0, P, EXCLUSIVE)]


def test_k2_is_checked_while_no_recall_is_in_progress() -> None:
    tokens = holding(SHARED, 0, P)
    tokens.writers = 1
    with pytest.raises(AssertionError, match="K2"):
        tokens.check()
    tokens.revoke(0, P, NONE)  # giving them up has begun
    tokens.check()


# --- entitlement ---


def test_a_recall_waits_for_those_entitled_before_it_and_for_nobody_after() -> None:
    tokens = holding(EXCLUSIVE)
    before, elsewhere = tokens.entitle(0, P), tokens.entitle(8 * P, 9 * P)
    revocation = tokens.revoke(0, 2 * P, NONE)
    after = tokens.entitle(0, P)
    assert revocation.waits_for == {before}
    tokens.used(after)
    tokens.used(elsewhere)
    assert not tokens.may_begin(revocation)
    tokens.used(before)
    assert tokens.may_begin(revocation)
    tokens.used(before)  # giving up twice is harmless
    tokens.check()


# --- recalls that overlap ---


def test_an_entitled_operation_flushes_before_the_recalls_that_wait_for_it() -> None:
    tokens = DataTokens()
    tokens.granted(0, 4 * P, EXCLUSIVE)
    earlier = tokens.revoke(2 * P, 4 * P, NONE)
    number = tokens.entitle(0, 4 * P)
    recall = tokens.revoke(0, P, NONE)
    flush = tokens.flush(0, P, number)
    assert tokens.may_begin(flush)
    assert not tokens.may_begin(recall), "the operation has its turn first"
    behind = tokens.flush(P, 3 * P, number)
    assert not tokens.may_begin(behind), "a recall that does not wait for it may be under way"
    tokens.reduce(2 * P, 4 * P, NONE)
    tokens.revoked(earlier)
    assert tokens.may_begin(behind)
    tokens.revoked(flush)
    tokens.revoked(behind)
    assert not tokens.may_begin(recall)
    tokens.used(number)
    assert tokens.may_begin(recall)
    tokens.check()


def test_a_recall_begins_when_no_earlier_one_of_any_of_its_range_is_in_progress() -> None:
    """Found by reading: the second recall of a page found nothing in the kernel, as the first had taken that
    out of the books, and was acknowledged while the kernel was still at it."""
    tokens = holding(EXCLUSIVE, writers=1)
    tokens.answered(0, 4 * P)
    first = tokens.revoke(0, 2 * P, SHARED)
    second = tokens.revoke(P, 3 * P, NONE)
    beside = tokens.revoke(3 * P, 4 * P, NONE)
    third = tokens.revoke(0, RANGE_END, NONE)
    assert [tokens.may_begin(r) for r in (first, second, beside, third)] == [True, False, True, False]
    assert tokens.invalidate(first) == [(0, 2 * P)]
    assert not tokens.may_begin(second)
    first.returned[0] = 1
    tokens.reduce(0, 2 * P, NONE)
    tokens.revoked(first)
    assert tokens.may_begin(second)
    assert not tokens.may_begin(third)


# --- invalidation ---


def test_what_is_cached_during_an_invalidation_comes_out_at_the_next_one() -> None:
    tokens = holding(EXCLUSIVE)
    tokens.answered(0, 3 * P)
    revocation = tokens.revoke(0, 8 * P, NONE)
    assert tokens.invalidate(revocation) == [(0, 3 * P)]
    assert revocation.phase is Phase.INVALIDATING
    tokens.answered(2 * P, 5 * P)  # operations that ran meanwhile
    revocation.returned[0] = 1
    assert tokens.parked(0, P)
    assert tokens.invalidate(revocation) == [(2 * P, 5 * P)]
    assert not tokens.parked(0, P), "an operation may hold the folio that this pass waits for"
    revocation.returned[0] = 1
    assert tokens.invalidate(revocation) == []
    assert revocation.phase is Phase.CLOSED
    tokens.reduce(0, 8 * P, NONE)
    tokens.revoked(revocation)
    assert tokens.everything() == [(8 * P, RANGE_END, EXCLUSIVE)]
    tokens.check()


def test_nothing_cached_closes_at_once() -> None:
    tokens = holding(EXCLUSIVE)
    tokens.answered(4 * P, 5 * P)
    revocation = tokens.revoke(0, 4 * P, NONE)
    assert tokens.invalidate(revocation) == []
    assert tokens.parked(0, P)
    assert not tokens.parked(4 * P, 5 * P)


def test_pages_of_an_unanswered_read_are_left_out() -> None:
    """Deadlock 1: they are locked until the read is answered, and not up to date."""
    tokens = holding(SHARED)
    tokens.answered(0, 4 * P)
    tokens.read_arrived(P, 2 * P)
    revocation = tokens.revoke(0, RANGE_END, NONE)
    assert tokens.invalidate(revocation) == [(0, P), (2 * P, 4 * P)]


def test_only_held_pages_are_given_to_the_kernel() -> None:
    tokens = holding(SHARED, 0, P)
    with pytest.raises(AssertionError, match="K1"):
        tokens.answered(0, 2 * P)


def test_a_token_is_not_given_up_while_the_kernel_has_its_pages() -> None:
    tokens = holding(SHARED)
    tokens.answered(P, 2 * P)
    with pytest.raises(AssertionError, match="K1"):
        tokens.reduce(0, 2 * P, NONE)
    tokens.reduce(2 * P, 3 * P, NONE)


def test_reduced_to_shared_pages_may_stay() -> None:
    tokens = holding(EXCLUSIVE)
    tokens.answered(0, P)
    tokens.reduce(0, P, SHARED)
    assert tokens.everything() == [(0, P, SHARED), (P, RANGE_END, EXCLUSIVE)]
    tokens.reduce(0, 2 * P, SHARED)
    tokens.reduce(0, P, EXCLUSIVE)  # never more than there was
    assert tokens.everything() == [(0, 2 * P, SHARED), (2 * P, RANGE_END, EXCLUSIVE)]


# --- any sequence ---

PAGES = 6
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).filter(lambda p: p[0] < p[1])


class DataTokensModel(RuleBasedStateMachine):
    """Operations, grants and recalls in any order, as the engine applies them; a set of pages each says what
    must be so."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = DataTokens()
        self.entitled: list[int] = []
        self.held: dict[int, TokenMode] = {}
        self.cached: set[int] = set()
        self.in_progress: list[tuple[Revocation, set[int]]] = []  # and what the kernel is dropping

    @rule(where=ranges, mode=st.sampled_from((SHARED, EXCLUSIVE)))
    def granted(self, where: tuple[int, int], mode: TokenMode) -> None:
        self.tokens.granted(where[0] * P, where[1] * P, mode)
        for page in range(*where):
            self.held[page] = max(self.held.get(page, NONE), mode)
        self.entitled.append(self.tokens.entitle(where[0] * P, where[1] * P))

    @rule(where=ranges)
    def read(self, where: tuple[int, int]) -> None:
        start, end = where[0] * P, where[1] * P
        self.tokens.read_arrived(start, end)
        self.cached -= set(range(*where))
        if not self.tokens.parked(start, end) and self.tokens.holds(start, end, SHARED):
            self.tokens.answered(start, end)
            self.cached |= set(range(*where))

    @precondition(lambda self: self.entitled)
    @rule(which=st.integers(0, 100))
    def used(self, which: int) -> None:
        self.tokens.used(self.entitled.pop(which % len(self.entitled)))

    @precondition(lambda self: len(self.in_progress) < 3)
    @rule(where=ranges, keep=st.sampled_from((NONE, SHARED)))
    def recall(self, where: tuple[int, int], keep: TokenMode) -> None:
        self.in_progress.append((self.tokens.revoke(where[0] * P, where[1] * P, keep), set()))

    @precondition(lambda self: self.in_progress)
    @rule(which=st.integers(0, 100))
    def go_on(self, which: int) -> None:
        index = which % len(self.in_progress)
        revocation, dropping = self.in_progress[index]
        pages = set(range(revocation.start // P, revocation.end // P))
        if revocation.phase is Phase.INVALIDATING:
            dropping.clear()
            revocation.returned[0] = 1
        elif self.tokens.may_begin(revocation):
            ranges = self.tokens.invalidate(revocation)
            found = {page for low, high in ranges for page in range(low // P, high // P)}
            assert found == self.cached & pages
            self.cached -= found
            dropping |= found
            if not found:
                assert not any(pages & others for _, others in self.in_progress), "the kernel is not done"
                self.tokens.reduce(revocation.start, revocation.end, revocation.keep)
                self.tokens.revoked(revocation)
                for page in pages & set(self.held):
                    self.held[page] = min(self.held[page], revocation.keep)
                del self.in_progress[index]

    @invariant()
    def agrees(self) -> None:
        self.tokens.check()
        assert {page for page in range(PAGES) if self.tokens.in_kernel.at(page * P)} == self.cached
        for page in range(PAGES):
            assert (self.tokens.held.at(page * P) or NONE) == self.held.get(page, NONE)

    def teardown(self) -> None:
        """Whatever has happened, everything comes to its end: no recall waits for ever."""
        while self.entitled:
            self.used(0)
        for turn in range(100):
            if not self.in_progress:
                return
            self.go_on(turn)
        raise AssertionError("recalls wait for each other")


TestDataTokensModel = DataTokensModel.TestCase
TestDataTokensModel.settings = settings(max_examples=80, stateful_step_count=30)
