"""setxattr(2) with flags: pyfuse3 probes by getxattr first, and what comes in between is another request's."""

from __future__ import annotations

import errno
import os

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
