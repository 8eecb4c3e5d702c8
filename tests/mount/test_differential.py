"""A mount against a local directory: the same operations, the same results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.file_operations import Directory, generate
from tests.mount.conftest import Pair

OPERATIONS = 500
COMPARE_EVERY = 100


@pytest.mark.parametrize("seed", range(1, 7))
def test_like_a_local_directory(pair: Pair, tmp_path: Path, seed: int) -> None:
    """And like what is seen through the other mount, and on the server."""
    before = os.umask(0o022)
    (tmp_path / "local").mkdir()
    here, local = Directory(pair.one), Directory(tmp_path / "local")
    elsewhere = Directory(pair.two)
    try:
        for number, operation in enumerate(generate(seed, OPERATIONS)):
            story = f"seed {seed}, operation {number}: {operation!s:.300}"
            assert here.apply(operation) == local.apply(operation), story
            if number % COMPARE_EVERY == COMPARE_EVERY - 1:
                tree = local.tree()
                assert here.tree() == tree, f"after {story}"
                assert elsewhere.tree() == tree, f"through the other mount, after {story}"
        assert Directory(pair.export).tree() == local.tree(), f"seed {seed}, on the server"
    finally:
        here.close_all()
        local.close_all()
        os.umask(before)
