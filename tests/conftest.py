"""Test-wide settings: Hypothesis draws the same examples on every run.

``pytest --hypothesis-profile=explore`` draws others each time; what it finds becomes a named test.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", derandomize=False, database=None, deadline=None)
settings.load_profile("deterministic")
