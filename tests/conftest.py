"""Test-wide settings: Hypothesis draws the same examples on every run.

``pytest --hypothesis-profile=explore`` draws others each time; what it finds becomes a named test.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", derandomize=False, database=None, deadline=None)
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--soak``: tests of contention run as long as it takes to believe them."""
    parser.addoption("--soak", action="store_true", help="long versions of the tests of contention")
