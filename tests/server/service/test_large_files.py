"""What frees much space is done in a thread, whatever it is called: nobody else waits for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Request
from nfsfuse.protocol.types import AttributeChanges, Credentials, InodeHandle
from nfsfuse_server.service.sub_steps import FREED_INLINE_SIZE_MAX
from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.service import serving
from tests.helpers.steps import MarkingDisk, StepsOnly

pytestmark = [
    pytest.mark.usefixtures("autojump_clock"),
    pytest.mark.skipif(os.geteuid() != 0, reason="persistent handles need root"),
]

FREEING = ("unlink", "rename", "setattr")
Asked = Callable[[InodeHandle, InodeHandle], Request[Any]]

FREES: dict[str, Asked] = {
    "unlink": lambda root, file: m.Unlink(root, b"file"),
    "rename": lambda root, file: m.Rename(root, b"other", root, b"file", 0),
    "truncate": lambda root, file: m.SetAttr(file, AttributeChanges(size=0)),
    "open": lambda root, file: m.Open(file, os.O_RDWR | os.O_TRUNC, True),
    "create": lambda root, file: m.Create(
        root, b"file", 0o644, os.O_RDWR | os.O_CREAT | os.O_TRUNC, Credentials(0, 0)
    ),
}
FREES_NOTHING: dict[str, Asked] = {
    "another name": lambda root, file: m.Unlink(root, b"link"),
    "renamed itself": lambda root, file: m.Rename(root, b"file", root, b"new", 0),
    "grown": lambda root, file: m.SetAttr(file, AttributeChanges(size=FREED_INLINE_SIZE_MAX * 4)),
    "chmod": lambda root, file: m.SetAttr(file, AttributeChanges(mode=0o600)),
}


class Recording(StepsOnly):
    """Where the calls that may free something were made."""

    def __init__(self, storage: Storage, disk: MarkingDisk) -> None:
        super().__init__(storage, disk)
        self.ran: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.ran.append(self._disk.running)
            return method(*args, **kwargs)

        return noted if name in FREEING else method


async def where(path: Path, ask: Asked, size: int, *, linked: bool = False) -> list[str]:
    storage, disk = LocalStorage(path, bytes(32)), MarkingDisk()
    with open(path / "file", "wb") as file:  # noqa: ASYNC230
        os.posix_fallocate(file.fileno(), 0, size)
    (path / "other").touch()
    if linked:
        os.link(path / "file", path / "link")
    steps = Recording(storage, disk)
    async with serving(storage=cast(Storage, steps), disk=disk) as server:
        client = await server.client()
        root = client.root.handle
        handle = storage.lookup(root, b"file").handle
        steps.guarded = True
        await client.session.call(ask(root, handle))
    storage.close()
    return steps.ran


@pytest.mark.parametrize("what", FREES)
async def test_a_large_file_goes_in_a_thread(what: str, tmp_path: Path) -> None:
    assert await where(tmp_path, FREES[what], 2 * FREED_INLINE_SIZE_MAX) == ["slow"]


@pytest.mark.parametrize("what", FREES)
async def test_a_small_one_without(what: str, tmp_path: Path) -> None:
    assert await where(tmp_path, FREES[what], 4096) == ["quick"]


@pytest.mark.parametrize("what", FREES_NOTHING)
async def test_nor_does_what_frees_nothing(what: str, tmp_path: Path) -> None:
    ran = await where(tmp_path, FREES_NOTHING[what], 2 * FREED_INLINE_SIZE_MAX, linked=what == "another name")
    assert ran == ["quick"]
