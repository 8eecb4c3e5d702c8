"""Files that are made without a name (O_TMPFILE), and what overlayfs needs of the filesystem it writes to."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from scripts.rig.rig import Rig
from tests.mount.conftest import Pair

RENAME_WHITEOUT = 4


def nameless(directory: Path, flags: int = 0) -> int:
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, 0o640)


def give_name(descriptor: int, directory: Path, name: str) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, as open(2) has it."""
    where = os.open(directory, os.O_PATH)
    try:
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=where)
    finally:
        os.close(where)


def test_a_file_without_a_name_is_seen_by_others_once_it_has_one(pair: Pair) -> None:
    descriptor = nameless(pair.one)
    assert os.fstat(descriptor).st_nlink == 0
    assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o640
    os.write(descriptor, b"content")
    assert os.listdir(pair.two) == []
    give_name(descriptor, pair.one, "file")
    assert (pair.two / "file").read_bytes() == b"content"
    assert os.fstat(descriptor).st_nlink == 1
    os.write(descriptor, b" and more")
    assert (pair.two / "file").read_bytes() == b"content and more"
    os.close(descriptor)
    assert (pair.export / "file").read_bytes() == b"content and more"


def test_a_file_without_a_name_is_named_once_and_not_at_all_if_that_was_refused(pair: Pair) -> None:
    descriptor = nameless(pair.one)
    give_name(descriptor, pair.one, "file")
    (pair.two / "file").unlink()
    with pytest.raises(FileNotFoundError):
        give_name(descriptor, pair.one, "again")
    os.close(descriptor)
    descriptor = nameless(pair.one, os.O_EXCL)
    with pytest.raises(FileNotFoundError):
        give_name(descriptor, pair.one, "excluded")
    os.close(descriptor)
    assert os.listdir(pair.one) == os.listdir(pair.two) == os.listdir(pair.export) == []


def test_a_file_without_a_name_outlives_the_server(rig: Rig) -> None:
    server = rig.server()
    one, two = rig.mount(server), rig.mount(server)
    descriptor = nameless(one)
    os.write(descriptor, b"content")
    os.fsync(descriptor)  # a process that is started closes its copy of what is dirty, and would wait
    server.kill()
    server = rig.restart(server)
    assert os.pread(descriptor, 100, 0) == b"content"
    assert os.fstat(descriptor).st_nlink == 0
    give_name(descriptor, one, "file")
    os.close(descriptor)
    assert (two / "file").read_bytes() == b"content"


def rename_leaving_a_whiteout(old: Path, new: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd = -100
    if libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), RENAME_WHITEOUT) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


def test_a_rename_leaves_a_whiteout_on_both_mounts(pair: Pair) -> None:
    (pair.one / "old").write_bytes(b"moved")
    (pair.one / "new").write_bytes(b"overwritten")
    assert (pair.two / "old").read_bytes() == b"moved"
    kept = (pair.two / "new").open("rb")
    rename_leaving_a_whiteout(pair.one / "old", pair.one / "new")
    for mount in (pair.one, pair.two):
        assert (mount / "new").read_bytes() == b"moved"
        left = (mount / "old").stat()
        assert (stat.S_ISCHR(left.st_mode), left.st_rdev) == (True, 0)
    with kept:
        assert kept.read() == b"overwritten"
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        rename_leaving_a_whiteout(pair.two / "none", pair.two / "new")


OVERLAY = """
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$MERGED"
cd "$MERGED"
echo more >> appended
rm removed
mv directory/file directory/moved
rm -r emptied; mkdir emptied
echo new > made
chmod 600 mode
ln made linked
find . -type f | sort | xargs grep -H .
cd /
umount "$MERGED"
"""


def test_overlayfs_writes_to_a_mount(rig: Rig, tmp_path: Path) -> None:
    """Copies up, hides what is removed, moves: all of it in the upper directory, and there for all clients."""
    server = rig.server()
    one, two = rig.mount(server), rig.mount(server)
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    for directory in (lower / "directory", lower / "emptied", merged, one / "upper", one / "work"):
        directory.mkdir(parents=True)
    for name in ("appended", "removed", "mode", "directory/file", "emptied/file"):
        (lower / name).write_text(f"{name}\n")
    rig.environment |= {
        "LOWER": str(lower),
        "UPPER": str(one / "upper"),
        "WORK": str(one / "work"),
        "MERGED": str(merged),
    }
    ran = rig.command("unshare", "--mount", "sh", "-exc", OVERLAY).succeeded()
    assert ran.output.splitlines() == [
        "./appended:appended", "./appended:more", "./directory/moved:directory/file", "./linked:new",
        "./made:new", "./mode:mode",
    ]  # fmt: skip
    upper = two / "upper"
    assert (upper / "appended").read_text() == "appended\nmore\n"
    for hidden in ("removed", "directory/file"):
        found = (upper / hidden).lstat()
        assert (stat.S_ISCHR(found.st_mode), found.st_rdev) == (True, 0)
    assert os.getxattr(upper / "emptied", "trusted.overlay.opaque") == b"y"
    assert (upper / "linked").stat().st_nlink == 2
    assert stat.S_IMODE((upper / "mode").stat().st_mode) == 0o600
