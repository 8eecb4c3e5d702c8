from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.toymount import Daemon, Mounter


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Mounter]:
    """Mount the toy filesystem with the given settings."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse")
    daemons: list[Daemon] = []

    def start(**settings: Any) -> Daemon:
        path = tmp_path / f"mount{len(daemons)}"
        path.mkdir()
        daemons.append(Daemon(path, **settings))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()
