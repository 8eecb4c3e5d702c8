"""More files are open on clients than the server may have descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from scripts.rig.rig import SERVER, Rig
from tests.mount.conftest import TEST_SECONDS_MAX

LIMIT = 128
"""RLIMIT_NOFILE of the server."""


@pytest.fixture(autouse=True)
def as_many_as_needed() -> Iterator[None]:
    """In this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_ten_times_as_many_files_are_open_as_the_server_has_descriptors(rig: Rig) -> None:
    server = rig.server(command=("prlimit", f"--nofile={LIMIT}", *SERVER))
    mount = rig.mount(server)
    rig.deadline(TEST_SECONDS_MAX)
    names = [mount / str(number) for number in range(10 * LIMIT)]
    files = [os.open(name, os.O_RDWR | os.O_CREAT) for name in names]
    for number, file in enumerate(files):
        os.write(file, b"%d" % number)
    for name in names[::2]:
        name.unlink()
    for file in files[::7]:
        os.fsync(file)
    assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < LIMIT
    for number, file in enumerate(files):
        assert os.pread(file, 10, 0) == b"%d" % number
        os.pwrite(file, b"!", 0)
        assert os.fstat(file).st_nlink == number % 2
        os.close(file)
    assert all((server.export / name.name).read_bytes()[:1] == b"!" for name in names[1::2])
    assert "Traceback" not in server.log.read_text()
