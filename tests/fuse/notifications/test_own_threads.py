"""Threads of the daemon's that use its own mount: they never wait for the server."""

from __future__ import annotations

import errno
import inspect
from types import SimpleNamespace
from typing import cast

import pytest

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.fuse.binding.libraries import Request, pyfuse3
from nfsfuse.fuse.notifications.own_mount import OwnMount
from nfsfuse.fuse.upcalls.operations import Operations
from nfsfuse.protocol.types import ACL_ACCESS, Attributes

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


class AskingAcls:
    """ACLs of which *known* is known here; more would have to be asked for."""

    def __init__(self, known: bytes | None) -> None:
        self.known = known

    def at_once(self, node_id: int, name: bytes) -> bytes | None:
        return self.known

    async def get(self, node_id: int, name: bytes) -> bytes:
        return b"from the server"


async def acl_told(known: bytes | None, thread: int) -> bytes:
    """What thread *thread* is told of an ACL, while thread 7 is the daemon's own."""
    own_mount = OwnMount("/nowhere")
    own_mount.threads.add(7)
    filesystem = cast(Filesystem, SimpleNamespace(acls=AskingAcls(known)))
    operations = Operations(filesystem, ROOT, own_mount)
    request = cast(Request, SimpleNamespace(pid=thread))
    told: bytes = await inspect.unwrap(Operations.getxattr)(operations, request, 1, ACL_ACCESS, None)
    return told


async def test_an_acl_that_is_not_known_here_is_not_asked_for_by_them() -> None:
    """The kernel wants the ACL of a directory or file that is another user's before it opens it."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await acl_told(None, 7)
    assert caught.value.errno == errno.EAGAIN
    assert await acl_told(b"known", 7) == b"known"
    assert await acl_told(None, 8) == b"from the server"
