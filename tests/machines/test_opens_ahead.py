"""When contents are asked for together with names."""

from __future__ import annotations

import pytest

from nfsfuse.machines.opens_ahead import CREDIT_MAX, EARNED, OpensAhead


def test_nothing_is_expected_before_something_was_opened() -> None:
    ahead = OpensAhead()
    assert not ahead.expected()
    ahead.opened()
    assert ahead.expected()


@pytest.mark.parametrize(("opened_of_ten", "expected"), [(10, True), (5, True), (2, False), (0, False)])
def test_it_is_asked_for_as_long_as_half_of_it_is_used(opened_of_ten: int, expected: bool) -> None:
    ahead = OpensAhead()
    for _ in range(CREDIT_MAX):
        ahead.opened()
    for number in range(100):
        if ahead.expected():
            ahead.asked()
            if number % 10 < opened_of_ten:
                ahead.opened()
    assert ahead.expected() is expected


def test_what_comes_in_vain_is_bounded() -> None:
    ahead = OpensAhead()
    for _ in range(1000):
        ahead.opened()
    in_vain = 0
    while ahead.expected():
        ahead.asked()
        in_vain += 1
    assert in_vain == CREDIT_MAX
    assert EARNED > 1
