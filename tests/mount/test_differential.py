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
    # One level down: links to ../b lead out of it, and must not meet another test there.
    here, local = pair.one / "root", tmp_path / "root"
    here.mkdir()
    local.mkdir()
    mounted, expected = Directory(here), Directory(local)
    try:
        for number, operation in enumerate(generate(seed, OPERATIONS)):
            story = f"seed {seed}, operation {number}: {operation!s:.300}"
            assert mounted.apply(operation) == expected.apply(operation), story
            if number % COMPARE_EVERY == COMPARE_EVERY - 1:
                tree = expected.tree()
                assert mounted.tree() == tree, f"after {story}"
                assert Directory(pair.two / "root").tree() == tree, f"through the other mount, after {story}"
        mounted.close_all()  # then everything written is at the server, if not on its disk
        expected.close_all()
        assert Directory(pair.export / "root").tree() == expected.tree(), f"seed {seed}, on the server"
    finally:
        mounted.close_all()
        expected.close_all()
        os.umask(before)
