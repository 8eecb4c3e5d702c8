"""File handles of a mount (name_to_handle_at(2)): what an NFS server that exports it goes by."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfsfuse_server.storage.syscalls import name_to_handle, open_by_handle
from scripts.rig.rig import Rig
from tests.mount.conftest import Pair

FORGET = Path("/proc/sys/vm/drop_caches")

DENTRIES_AND_INODES = "2"


def handle_of(mount: Path, name: str) -> bytes:
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        return name_to_handle(descriptor, os.fsencode(name))[0]
    finally:
        os.close(descriptor)


def opened(mount: Path, handle: bytes) -> int:
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        return open_by_handle(descriptor, handle, os.O_RDONLY)
    finally:
        os.close(descriptor)


def content(mount: Path, handle: bytes) -> bytes:
    descriptor = opened(mount, handle)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_a_handle_is_good_when_the_kernel_has_forgotten_the_inode_and_on_the_other_mount(pair: Pair) -> None:
    (pair.one / "directory").mkdir()
    (pair.one / "directory/file").write_bytes(b"content")
    file, directory = (handle_of(pair.one, name) for name in ("directory/file", "directory"))
    for mount in (pair.one, pair.two):
        FORGET.write_text(DENTRIES_AND_INODES)
        assert content(mount, file) == b"content"
        descriptor = opened(mount, directory)
        assert os.listdir(descriptor) == ["file"]
        assert os.readlink(f"/proc/self/fd/{descriptor}") == str(mount / "directory")
        os.close(descriptor)
    (pair.two / "directory/file").write_bytes(b"changed")
    FORGET.write_text(DENTRIES_AND_INODES)
    assert content(pair.one, file) == b"changed"
    (pair.two / "directory/file").rename(pair.two / "moved")
    assert content(pair.one, file) == b"changed"


def test_a_handle_is_stale_when_the_file_is_gone_also_if_its_number_is_used_again(pair: Pair) -> None:
    (pair.one / "file").write_bytes(b"content")
    handle, number = handle_of(pair.one, "file"), (pair.one / "file").stat().st_ino
    (pair.two / "file").unlink()
    for round_ in range(20):
        FORGET.write_text(DENTRIES_AND_INODES)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            opened(pair.one, handle)
        made = pair.one / f"other-{round_}"
        made.write_bytes(b"another")
        if made.stat().st_ino == number:
            break


def test_a_handle_is_good_after_a_remount(rig: Rig) -> None:
    server = rig.server()
    mount = rig.mount(server)
    (mount / "one/two/three").mkdir(parents=True)
    (mount / "one/two/three/file").write_bytes(b"content")
    (mount / "gone").write_bytes(b"gone")
    file, gone = handle_of(mount, "one/two/three/file"), handle_of(mount, "gone")
    directory = handle_of(mount, "one/two/three")
    (mount / "gone").unlink()
    rig.command("nfsfuse", "umount", mount).succeeded()
    rig.mount(server, mountpoint=mount)
    descriptor = opened(mount, directory)
    assert os.readlink(f"/proc/self/fd/{descriptor}") == str(mount / "one/two/three")
    os.close(descriptor)
    assert content(mount, file) == b"content"
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        opened(mount, gone)


LISTED = """
import os, sys
from nfsfuse_server.storage.syscalls import getdents
descriptor = os.open(sys.argv[1], os.O_RDONLY)
numbers = {entry.name: entry.ino for entry in getdents(descriptor, 4096)}
print(numbers[b"."], numbers[b".."])
"""


def dots(directory: Path) -> tuple[int, int]:
    """d_ino of "." and ".."."""
    told = subprocess.run(
        [sys.executable, "-c", LISTED, directory], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(told[0]), int(told[1])


def test_the_numbers_of_a_directory_and_of_the_one_above(pair: Pair) -> None:
    (pair.one / "first/second").mkdir(parents=True)
    own, first, second = ((pair.one / name).stat().st_ino for name in (".", "first", "first/second"))
    for mount in (pair.one, pair.two):
        assert dots(mount / "first/second") == (second, first)
        assert dots(mount / "first") == (first, own)
        assert dots(mount)[0] == own
        root = mount.parent
        assert dots(root)[0] == root.stat().st_ino
        assert dots(mount)[1] == root.stat().st_ino
    (pair.one / "first/second").rename(pair.one / "moved")
    for mount in (pair.one, pair.two):
        assert dots(mount / "moved") == (second, own)
