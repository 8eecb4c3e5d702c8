"""Test-wide settings: records are frozen, and Hypothesis draws the same examples on every run.

``pytest --hypothesis-profile=explore`` draws others each time; what it finds becomes a named test.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings

from nfsfuse.protocol import record

record.enforced = True  # before any module with records is imported: see there

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", derandomize=False, database=None, deadline=None)
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--soak``: tests of contention run as long as it takes to believe them."""
    parser.addoption("--soak", action="store_true", help="long versions of the tests of contention")


def pytest_itemcollected(item: pytest.Item) -> None:
    """pytest-trio takes a clock only from a test's own arguments. A module that says
    ``usefixtures("autojump_clock")`` means all its tests, or they would sleep for real."""
    if "autojump_clock" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.trio(run=_run_simulated))


def _run_simulated(test: Any, *, clock: trio.abc.Clock | None = None, **options: Any) -> Any:
    return trio.run(test, clock=clock or trio.testing.MockClock(autojump_threshold=0), **options)
