"""Test-wide settings: Hypothesis draws the same examples on every run.

A search for new failures is ``pytest --hypothesis-profile=explore``; what it finds becomes a named test.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", derandomize=False, database=None, deadline=None, max_examples=5000)
settings.load_profile("deterministic")
