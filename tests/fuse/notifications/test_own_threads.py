"""Threads of the daemon's that use its own mount: they never wait for the server."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import cast

import pytest

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.fuse.binding.libraries import Request, pyfuse3
from nfsfuse.fuse.notifications.own_mount import OwnMount
from nfsfuse.fuse.upcalls.operations import Operations
from nfsfuse.protocol.types import Attributes

ROOT = Attributes(2, 0o40755, 2, 0, 0, 0, 4096, 8, 0, 0, 0, 0)


@pytest.mark.parametrize("name", [b".", b".."])
async def test_what_the_kernel_has_forgotten_meanwhile_is_stale_for_them(name: bytes) -> None:
    """Such a thread opens a file by its handle. Of an inode that is forgotten the kernel would have the daemon
    ask the server, and what waits for the thread may be a recall."""
    own_mount = OwnMount("/nowhere")
    own_mount.threads.add(7)
    operations = Operations(cast(Filesystem, None), ROOT, own_mount)
    request = cast(Request, SimpleNamespace(pid=7))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations._by_number(request, 5, name)
    assert caught.value.errno == errno.ESTALE
