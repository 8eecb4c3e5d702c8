"""Where the local directory's storage keeps orphans: crashes, and what may be wrong with the directory."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import Credentials, InodeHandle
from nfsfuse_server.storage import orphans
from nfsfuse_server.storage.interface import ORPHANS_NAME
from nfsfuse_server.storage.local import LocalStorage

ME = Credentials(0, 0)
NAME = ORPHANS_NAME.decode()


@contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno == number, caught.value


@contextmanager
def opened(path: Path, secret: bytes | None) -> Iterator[LocalStorage]:
    storage = LocalStorage(path, secret)
    try:
        yield storage
        storage._cache.check()
    finally:
        storage.close()


def make(storage: LocalStorage, name: bytes = b"file", content: bytes = b"content") -> InodeHandle:
    node = storage.create(storage.root().handle, name, 0o644, ME)
    storage.write(node.handle, 0, content)
    return node.handle


def kept(path: Path) -> list[str]:
    return os.listdir(path / NAME)


_VICTIM = textwrap.dedent("""
    import os, signal, sys
    from nfsfuse.protocol.types import Credentials
    from nfsfuse_server.storage.local import LocalStorage
    storage = LocalStorage(sys.argv[1], bytes(range(32)))
    root = storage.root().handle
    handles = []
    for name in (b"unlinked", b"overwritten"):
        node = storage.create(root, name, 0o644, Credentials(0, 0))
        storage.write(node.handle, 0, name)
        storage.pin(node.handle)
        handles.append(node.handle)
    storage.unlink(root, b"unlinked")
    storage.create(root, b"new", 0o644, Credentials(0, 0))
    storage.rename(root, b"new", root, b"overwritten", 0)
    print(*(handle.hex() for handle in handles), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")


def test_a_killed_server_loses_no_open_file(local_dir: Path, secret: bytes) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _VICTIM, str(local_dir)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    unlinked, overwritten = (InodeHandle(bytes.fromhex(word)) for word in run.stdout.split())
    with opened(local_dir, secret) as storage:
        assert storage.read(unlinked, 0, 100) == b"unlinked"
        assert storage.read(overwritten, 0, 100) == b"overwritten"
        storage.pin(overwritten)
        storage.sweep()
        assert len(kept(local_dir)) == 1
        storage.unpin(overwritten)
        assert kept(local_dir) == []
        for handle in (unlinked, overwritten):
            with raises(errno.ESTALE):
                storage.getattr(handle)


def crash_between_link_and_unlink(path: Path, secret: bytes) -> InodeHandle:
    with opened(path, secret) as storage:
        file = make(storage)
    os.link(path / "file", path / NAME / f"{(path / 'file').stat().st_ino:x}")
    return file


def test_a_crash_between_link_and_unlink_leaves_the_file_as_it_was(local_dir: Path, secret: bytes) -> None:
    file = crash_between_link_and_unlink(local_dir, secret)
    with opened(local_dir, secret) as storage:
        assert storage.orphans() == [file]
        assert storage.getattr(file).nlink == 1
        storage.link(file, storage.root().handle, b"second")
        storage.sweep()
        assert storage.orphans() == []
        assert storage.getattr(file).nlink == 2
        assert storage.read(file, 0, 100) == b"content"
    assert (local_dir / "file").stat().st_nlink == 2


@pytest.mark.parametrize("pinned", [False, True])
def test_a_link_left_by_a_crash_serves_when_the_name_goes_at_last(
    local_dir: Path, secret: bytes, pinned: bool
) -> None:
    file = crash_between_link_and_unlink(local_dir, secret)
    with opened(local_dir, secret) as storage:
        if pinned:
            storage.pin(file)
        assert storage.unlink(storage.root().handle, b"file").attributes.nlink == 0
        assert len(kept(local_dir)) == pinned
        if pinned:
            assert storage.read(file, 0, 100) == b"content"
            storage.unpin(file)
        assert kept(local_dir) == []
        with raises(errno.ESTALE):
            storage.getattr(file)


def test_the_directory_is_the_servers_alone(local_dir: Path, secret: bytes) -> None:
    (local_dir / NAME).mkdir(mode=0o777)
    with opened(local_dir, secret):
        assert (local_dir / NAME).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["somebody else's", "a file", "a symbolic link", "a read-only export"])
def test_without_the_directory_a_pin_is_still_a_descriptor(
    local_dir: Path, secret: bytes, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    match what:
        case "somebody else's":
            (local_dir / NAME).mkdir()
            os.chown(local_dir / NAME, 1000, 1000)
        case "a file":
            (local_dir / NAME).touch()
        case "a symbolic link":
            (local_dir / NAME).symlink_to(local_dir)
        case _:
            (local_dir / "file").write_text("content")
            subprocess.run(["mount", "--bind", local_dir, local_dir], check=True, timeout=20)
            subprocess.run(["mount", "-o", "remount,ro,bind", local_dir], check=True, timeout=20)
    try:
        with opened(local_dir, secret) as storage, caplog.at_level(logging.WARNING):
            root = storage.root().handle
            if what == "a read-only export":
                file = storage.lookup(root, b"file").handle
                storage.pin(file)
                with raises(errno.EROFS):
                    storage.unlink(root, b"file")
            else:
                file = make(storage)
                storage.pin(file)
                storage.unlink(root, b"file")
                assert "a restart loses it" in caplog.text
            assert storage.read(file, 0, 100) == b"content"
            assert storage.orphans() == []
            storage.sweep()
            assert storage.getattr(root).nlink == local_dir.stat().st_nlink
            storage.unpin(file)
    finally:
        if what == "a read-only export":
            subprocess.run(["umount", "-l", local_dir], check=True, timeout=20)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.ENOSPC, errno.EDQUOT, errno.EPERM])
def test_what_cannot_be_linked_is_kept_by_its_descriptor(
    local: LocalStorage,
    local_dir: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    file = make(local)
    local.pin(file)
    monkeypatch.setattr(orphans.os, "link", refuse)
    local.unlink(local.root().handle, b"file")
    assert os.strerror(number) in caplog.text
    assert kept(local_dir) == []
    assert local.getattr(file).nlink == 0
    assert local.read(file, 0, 100) == b"content"
    local.unpin(file)
    with raises(errno.ESTALE):
        local.getattr(file)


def test_two_servers_do_not_sweep_each_others_orphans(
    local_dir: Path, secret: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(local_dir, secret) as first:
        file = make(first)
        first.pin(file)
        first.unlink(first.root().handle, b"file")
        with opened(local_dir, secret) as second:
            assert "another server" in caplog.text
            second.sweep()
            assert second.orphans() == []
            assert len(kept(local_dir)) == 1
        assert first.read(file, 0, 100) == b"content"
        first.unpin(file)
    with opened(local_dir, secret) as third:
        assert third._orphans._directory is not None, "it is free again"


def test_the_directory_is_made_again_when_the_administrator_removes_it(
    local: LocalStorage, local_dir: Path
) -> None:
    root = local.root().handle
    first = make(local, content=b"first")
    local.pin(first)
    local.unlink(root, b"file")
    shutil.rmtree(local_dir / NAME)
    assert local.getattr(first).nlink == 0
    assert local.read(first, 0, 100) == b"first", "its descriptor keeps it"
    second = make(local, content=b"second")
    local.pin(second)
    local.unlink(root, b"file")
    assert len(kept(local_dir)) == 1
    local.unpin(first)
    local.unpin(second)
    assert kept(local_dir) == []


def test_a_file_that_the_administrator_rescues_stays(local: LocalStorage, local_dir: Path) -> None:
    file = make(local)
    local.pin(file)
    local.unlink(local.root().handle, b"file")
    (name,) = kept(local_dir)
    os.link(local_dir / NAME / name, local_dir / "rescued")
    assert local.getattr(file).nlink == 1
    local.unpin(file)
    assert kept(local_dir) == []
    assert local.read(file, 0, 100) == b"content"
    assert (local_dir / "rescued").read_bytes() == b"content"


def test_orphans_of_volatile_handles_are_swept_since_nobody_can_name_them(tmp_path: Path) -> None:
    with opened(tmp_path, None) as storage:
        file = make(storage)
        storage.pin(file)
        storage.unlink(storage.root().handle, b"file")
        assert len(kept(tmp_path)) == 1
    with opened(tmp_path, None) as storage:
        assert storage.orphans() == []
        storage.sweep()
        assert kept(tmp_path) == []


def test_pins_race_with_unlinks(local: LocalStorage, local_dir: Path) -> None:
    """Whoever was first: a pin that succeeded keeps the inode also on the disk."""

    def pin(file: InodeHandle, barrier: threading.Barrier, outcomes: list[int]) -> None:
        barrier.wait()
        try:
            local.pin(file)
        except FsError as exc:
            outcomes.append(exc.errno)
        else:
            outcomes.append(0)

    root = local.root().handle
    for _ in range(200):
        file = make(local)
        barrier = threading.Barrier(2)
        outcomes: list[int] = []
        thread = threading.Thread(target=pin, args=(file, barrier, outcomes))
        thread.start()
        barrier.wait()
        local.unlink(root, b"file")
        thread.join()
        assert outcomes in ([0], [errno.ESTALE])
        assert len(kept(local_dir)) == (outcomes == [0])
        if outcomes == [0]:
            local.unpin(file)
        assert kept(local_dir) == []
