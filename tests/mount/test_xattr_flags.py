"""setxattr(2) with flags: decided on the server, at once for all clients. (pyfuse3 would probe by getxattr.)"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.rig.rig import Rig
from tests.mount.conftest import TEST_SECONDS_MAX


def test_create_and_replace(rig: Rig) -> None:
    rig.deadline(TEST_SECONDS_MAX)
    server = rig.server()
    one, other = rig.mount(server), rig.mount(server)
    (one / "file").write_bytes(b"")
    for number in range(3):
        name = f"user.{number}"
        with pytest.raises(OSError) as absent:  # noqa: PT011
            os.setxattr(one / "file", name, b"1", os.XATTR_REPLACE)
        assert absent.value.errno == errno.ENODATA
        os.setxattr(one / "file", name, b"1", os.XATTR_CREATE)
        with pytest.raises(FileExistsError):
            os.setxattr(other / "file", name, b"2", os.XATTR_CREATE)
        os.setxattr(other / "file", name, b"3", os.XATTR_REPLACE)
        assert os.getxattr(one / "file", name) == b"3"


def test_one_of_two_creates_it(rig: Rig) -> None:
    rig.deadline(TEST_SECONDS_MAX)
    server = rig.server()
    files = [rig.mount(server) / "file" for _ in range(2)]
    files[0].write_bytes(b"")

    def creates(path: Path, name: str) -> bool:
        try:
            os.setxattr(path, name, str(path).encode(), os.XATTR_CREATE)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(files)) as threads:
        for number in range(100):
            name = f"user.{number}"
            made = list(threads.map(creates, files, [name] * len(files)))
            assert sorted(made) == [False, True]
            winner = str(files[made.index(True)]).encode()
            assert [os.getxattr(path, name) for path in files] == [winner] * len(files)
            os.removexattr(files[number % 2], name)  # ext4 has room for some dozens
