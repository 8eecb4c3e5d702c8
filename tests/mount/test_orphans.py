"""Files that are unlinked while a program has them open, on the server's disk: kept for it, then gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsfuse_server.storage.interface import ORPHANS_NAME
from scripts.rig.rig import Rig

NAME = ORPHANS_NAME.decode()

SECONDS_MAX = 20.0
"""For the server to hear of a close; far longer than it takes, for a machine that is busy."""


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + SECONDS_MAX
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def kept(export: Path) -> list[str]:
    return os.listdir(export / NAME)


def test_an_open_file_that_another_client_unlinks_is_kept_until_its_last_close(rig: Rig) -> None:
    server = rig.server()
    one, two = rig.mount(server), rig.mount(server)
    for name in ("unlinked", "overwritten"):
        (one / name).write_text(name)
    (two / "new").write_text("new")
    files = [(one / name).open("r+") for name in ("unlinked", "overwritten")]
    (two / "unlinked").unlink()
    (two / "new").rename(two / "overwritten")
    assert len(kept(server.export)) == 2
    for file in files:
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == Path(file.name).name
        file.write(" and more")
        file.close()
    assert soon(lambda: not kept(server.export)), kept(server.export)
    assert (one / "overwritten").read_text() == "new"


def test_a_file_that_was_opened_under_tokens_alone_is_kept(rig: Rig) -> None:
    """Opened again, it makes no request: the server knows of the token only."""
    server = rig.server()
    one, two = rig.mount(server), rig.mount(server)
    (one / "file").write_text("content")
    assert (one / "file").read_text() == "content"
    with (one / "file").open() as file:
        (two / "file").unlink()
        assert len(kept(server.export)) == 1
        assert file.read() == "content"
    assert soon(lambda: not kept(server.export)), kept(server.export)


def test_clients_never_see_where_they_are_kept(rig: Rig) -> None:
    server = rig.server()
    mount = rig.mount(server)
    with (mount / "file").open("w"):
        (mount / "file").unlink()
        assert len(kept(server.export)) == 1
        assert os.listdir(mount) == []
        assert not (mount / NAME).exists()
        assert mount.stat().st_nlink == server.export.stat().st_nlink - 1
        for make in ((mount / NAME).mkdir, (mount / NAME).touch):
            try:
                make()
            except PermissionError:
                continue
            raise AssertionError("the name is reserved")


def test_a_server_that_was_killed_leaves_them_and_the_next_one_frees_them_after_grace(rig: Rig) -> None:
    state = ["--state-dir", str(rig.directory / "state"), "--grace", "3"]
    server = rig.server(arguments=state)
    mount = rig.mount(server)
    file = os.open(mount / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"content")
    os.fsync(file)
    (mount / "file").unlink()
    (name,) = kept(server.export)
    server.kill()
    abandoned = rig.kernel_mount(mount)
    assert abandoned is not None
    abandoned.abort()  # whose daemon cannot come back, and close would wait for it
    with pytest.raises(OSError, match="not connected"):
        os.close(file)
    again = rig.server(server.export, arguments=state)
    assert (server.export / NAME / name).read_text() == "content", "it may still be claimed"
    assert soon(lambda: kept(again.export) == [])
    assert os.listdir(rig.mount(again)) == []
