"""Many small writes with gaps between them: time grows with their number, not with its square."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scripts.rig.rig import Rig

TIMES_MAX = 5
"""The last quarter may take so many times what the first did, and a second: the machine may be busy with
something else. Grown with the square it takes minutes, and the fsync as long."""


@pytest.mark.parametrize(
    ("count", "size", "stride"),
    [(8000, 4096, 8192), (24000, 8, 4096)],
    ids=["pages with gaps", "some bytes of each page"],
)
def test_the_time_of_scattered_writes_grows_with_their_number(
    rig: Rig, count: int, size: int, stride: int
) -> None:
    server = rig.server()
    mount = rig.mount(server)
    path = mount / "scattered"
    content = bytes(range(1, size % 255 + 1)) * (size // (size % 255) + 1)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(fd, count * stride)
        seconds = []
        for quarter in range(4):
            began = time.monotonic()
            for at in range(quarter * count // 4, (quarter + 1) * count // 4):
                os.pwrite(fd, content[:size], at * stride)
            seconds.append(time.monotonic() - began)
            assert seconds[-1] < TIMES_MAX * seconds[0] + 1
        began = time.monotonic()
        os.fsync(fd)
        assert time.monotonic() - began < sum(seconds) + 1
    finally:
        os.close(fd)
    _has_them(server.export / "scattered", content[:size], count, stride)


def _has_them(path: Path, content: bytes, count: int, stride: int) -> None:
    with path.open("rb") as file:
        for at in range(count):
            file.seek(at * stride)
            assert file.read(stride) == content + bytes(stride - len(content)), at
