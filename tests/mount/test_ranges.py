"""fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range, birth times, set-user-ID bits, seen from two mounts."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO = 0x01, 0x02, 0x08, 0x10  # <linux/falloc.h>
MIB = 1 << 20


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    fd = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(fd, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def test_allocating(pair: Pair) -> None:
    (pair.one / "file").write_bytes(b"abc")
    assert (pair.two / "file").read_bytes() == b"abc"
    fallocate(pair.one / "file", 0, 0, MIB)
    for mount in (pair.one, pair.two):
        assert (mount / "file").stat().st_size == MIB
        assert (mount / "file").stat().st_blocks >= MIB // 512
        assert (mount / "file").read_bytes() == b"abc".ljust(MIB, b"\0")
    fallocate(pair.two / "file", KEEP_SIZE, MIB, MIB)
    assert (pair.one / "file").stat().st_size == MIB
    assert (pair.one / "file").stat().st_blocks >= 2 * MIB // 512


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO])
def test_holes_punched_on_one_mount_are_read_on_both(pair: Pair, mode: int) -> None:
    content = bytearray(os.urandom(MIB))
    for writer, other in ((pair.one, pair.two), (pair.two, pair.one)):
        (writer / "file").write_bytes(content)
        assert (other / "file").read_bytes() == content
        with (writer / "file").open("r+b") as file:
            file.seek(5000)
            file.write(b"not written back yet")
            file.flush()
            fallocate(writer / "file", mode, 4000, 100_000)
            expected = content[:]
            expected[4000:104_000] = bytes(100_000)
            assert (writer / "file").read_bytes() == expected
        assert (other / "file").read_bytes() == expected
        assert (pair.export / "file").read_bytes() == expected


def test_what_fuse_cannot_allocate_says_so(pair: Pair) -> None:
    (pair.one / "file").write_bytes(bytes(MIB))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is looked at
        fallocate(pair.one / "file", COLLAPSE, 0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_data_and_holes(pair: Pair) -> None:
    with (pair.one / "file").open("w+b") as file:
        os.ftruncate(file.fileno(), 10 * MIB)
        os.pwrite(file.fileno(), b"x" * 4096, 4 * MIB)
    fd = os.open(pair.two / "file", os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert 4 * MIB < os.lseek(fd, 4 * MIB, os.SEEK_HOLE) < 5 * MIB
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.lseek(fd, 5 * MIB, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.lseek(fd, 10 * MIB, os.SEEK_HOLE)
        assert caught.value.errno == errno.ENXIO
    finally:
        os.close(fd)


STORE_AND_SEEK = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
pages = mmap.mmap(fd, 0)
pages[2 * 1048576] = 1
print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 2 * 1048576, os.SEEK_HOLE), os.lseek(fd, 0, os.SEEK_HOLE))
"""


def test_what_was_stored_through_a_mapping_is_data(mounts: Mounts, pair: Pair) -> None:
    """Only the kernel knows of it; a copy that skips holes must not skip it."""
    with (pair.one / "file").open("wb") as file:
        file.truncate(10 * MIB)
    ran = mounts.rig.command(sys.executable, "-c", STORE_AND_SEEK, pair.one / "file").succeeded()
    data, hole, first_hole = map(int, ran.output.split())
    assert data <= 2 * MIB
    assert 2 * MIB < hole <= 10 * MIB
    assert first_hole == 0 or data == 0


def test_a_copy_is_done_by_the_server(mounts: Mounts, pair: Pair) -> None:
    content = os.urandom(3 * MIB)
    (pair.one / "source").write_bytes(content)
    (pair.two / "target").write_bytes(b"t" * 100_000)
    assert (pair.one / "target").read_bytes() == b"t" * 100_000
    with (pair.one / "source").open("r+b") as source, (pair.one / "target").open("r+b") as target:
        source.write(b"changed")
        source.flush()
        target.write(b"T")
        target.flush()
        copied = os.copy_file_range(source.fileno(), target.fileno(), 2 * MIB, 0, 50_000)
        assert copied == 2 * MIB
        expected = b"T".ljust(50_000, b"t") + b"changed" + content[7 : 2 * MIB]
        assert os.fstat(target.fileno()).st_size == len(expected)
        assert os.pread(target.fileno(), len(expected) + 1, 0) == expected
        assert (pair.two / "target").read_bytes() == expected
        assert os.copy_file_range(source.fileno(), target.fileno(), 100, 3 * MIB, 0) == 0


def test_birth_times(mounts: Mounts, pair: Pair) -> None:
    (pair.one / "file").touch()
    theirs = mounts.rig.command("stat", "-c", "%W %w", pair.export / "file").succeeded().output
    for mount in (pair.one, pair.two):
        assert mounts.rig.command("stat", "-c", "%W %w", mount / "file").succeeded().output == theirs
    assert mounts.rig.command("stat", "-c", "%s %a", pair.one / "file").succeeded().output.startswith("0 ")


NOBODY = 65534

CHANGES = {
    "write": "os.pwrite(os.open(path, os.O_WRONLY), b'x', 0)",
    "append": "os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x')",
    "truncate": "os.truncate(path, 1)",
    "open": "os.open(path, os.O_WRONLY | os.O_TRUNC)",
    "create": "os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("before", "after"), [(0o6777, 0o777), (0o2767, 0o767), (0o4767, 0o767)])
def test_a_write_by_another_user_takes_the_set_user_id_bit(
    pair: Pair, change: str, before: int, after: int
) -> None:
    if change in ("append", "open", "create") and before != 0o6777:
        pytest.skip("the same code")
    for mount, other in ((pair.one, pair.two), (pair.two, pair.one)):
        name = f"{change}-{before:o}-{mount.parent.name}"
        (mount / name).write_text("content")
        (mount / name).chmod(before)
        assert stat.S_IMODE((other / name).stat().st_mode) == before
        groups = f"os.setgroups([]); os.setgid({NOBODY})"  # the file's is none of them
        become = f"import os, sys; {groups}; os.setuid({NOBODY}); path = sys.argv[1]"
        subprocess.run(
            [sys.executable, "-c", f"{become}; {CHANGES[change]}", name], cwd=mount, check=True, timeout=30
        )
        for seen in (pair.export, mount, other):
            assert stat.S_IMODE((seen / name).stat().st_mode) == after, seen


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
@pytest.mark.parametrize("offset", [-1, -(2**63)])
def test_there_is_nothing_before_a_files_beginning(pair: Pair, whence: int, offset: int) -> None:
    """On the server's own filesystem as through the mount."""
    (pair.export / "file").write_bytes(b"content")
    for place in (pair.export, pair.one):
        descriptor = os.open(place / "file", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(descriptor, offset, whence)
        finally:
            os.close(descriptor)
