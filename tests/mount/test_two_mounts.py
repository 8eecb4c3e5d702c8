"""What one mount does, the other sees at once."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import Pair

RECORD = 100
"""Bytes in a record of the O_APPEND test; all of one writer's are alike."""

APPENDER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(int(sys.argv[3])):
    os.write(descriptor, f"{sys.argv[2]} {number:06} ".encode().ljust(int(sys.argv[4]) - 1, b".") + b"\\n")
"""


def test_data_written_is_read_through_files_open_on_both(pair: Pair) -> None:
    writer = os.open(pair.one / "file", os.O_RDWR | os.O_CREAT)
    reader = os.open(pair.two / "file", os.O_RDWR)
    try:
        for number in range(100):
            os.pwrite(writer, b"%6d" % number, number * 3)
            assert os.pread(reader, 6, number * 3) == b"%6d" % number
            os.pwrite(reader, b"%6d" % -number, number)
            assert os.pread(writer, 6, number) == b"%6d" % -number
            assert os.fstat(reader).st_size == os.fstat(writer).st_size
    finally:
        os.close(writer)
        os.close(reader)


def test_names_and_attributes(pair: Pair) -> None:
    assert not (pair.two / "name").exists()  # a name looked up before it exists is not remembered as absent
    (pair.one / "name").write_text("content")
    assert (pair.two / "name").stat().st_size == 7
    (pair.two / "name").chmod(0o640)
    assert (pair.one / "name").stat().st_mode & 0o7777 == 0o640
    os.chown(pair.one / "name", 12, 34)
    assert ((pair.two / "name").stat().st_uid, (pair.two / "name").stat().st_gid) == (12, 34)
    os.truncate(pair.two / "name", 3)
    assert (pair.one / "name").read_text() == "con"
    os.utime(pair.one / "name", ns=(1_000_000_001, 2_000_000_002))
    assert (pair.two / "name").stat().st_mtime_ns == 2_000_000_002
    assert (pair.two / "name").stat().st_atime_ns == 1_000_000_001
    (pair.two / "name").rename(pair.two / "other")
    assert os.listdir(pair.one) == ["other"]
    with pytest.raises(FileNotFoundError):
        (pair.one / "name").stat()
    (pair.one / "other").unlink()
    assert os.listdir(pair.two) == []


def test_a_directory_removed_elsewhere_under_a_program_in_it(pair: Pair) -> None:
    (pair.one / "gone").mkdir()
    descriptor = os.open(pair.two / "gone", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (pair.one / "gone").rmdir()
        with pytest.raises(OSError, match=r"No such file|Stale") as caught:
            os.mkdir("in it", dir_fd=descriptor)
        assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("unlinker", ["here", "there"])
def test_an_open_file_outlives_its_last_name(pair: Pair, unlinker: str) -> None:
    descriptor = os.open(pair.one / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"before")
        (pair.one if unlinker == "here" else pair.two).joinpath("file").unlink()
        assert os.listdir(pair.export) == []
        (pair.two / "file").write_text("another inode")
        assert os.pread(descriptor, 100, 0) == b"before"
        os.pwrite(descriptor, b"after!", 0)
        assert os.pread(descriptor, 100, 0) == b"after!"
        os.ftruncate(descriptor, 5)
        status = os.fstat(descriptor)
        assert (status.st_size, status.st_nlink) == (5, 0)
    finally:
        os.close(descriptor)
    assert (pair.one / "file").read_text() == "another inode"


def test_a_file_replaced_by_rename_goes_on_for_who_has_it_open(pair: Pair) -> None:
    (pair.one / "file").write_text("old")
    (pair.one / "new").write_text("new")
    with (pair.two / "file").open() as file:
        (pair.one / "new").rename(pair.one / "file")
        assert file.read() == "old"
    assert (pair.two / "file").read_text() == "new"


def test_appends_from_both_mounts_are_all_there(pair: Pair) -> None:
    count = 500
    (pair.one / "log").touch()
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDER, mount / "log", name, str(count), str(RECORD)])
        for mount, name in ((pair.one, "first"), (pair.two, "second"), (pair.one, "third"))
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    content = (pair.two / "log").read_bytes()
    records = [content[at : at + RECORD].split() for at in range(0, len(content), RECORD)]
    assert len(content) == 3 * count * RECORD
    for name in (b"first", b"second", b"third"):
        numbers = [int(record[1]) for record in records if record[0] == name]
        assert numbers == list(range(count)), "each writer's records are in its order"


def test_exclusive_creation_has_one_winner(pair: Pair) -> None:
    def create(path: Path) -> bool:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        for number in range(50):
            paths = [mount / f"race-{number}" for mount in (pair.one, pair.two) * 2]
            assert sum(threads.map(create, paths)) == 1


def test_one_directory_or_link_is_made_by_one_only(pair: Pair) -> None:
    def make(path: Path) -> bool:
        try:
            path.mkdir()
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        for number in range(50):
            paths = [mount / f"race-{number}" for mount in (pair.one, pair.two) * 2]
            assert sum(threads.map(make, paths)) == 1


def test_renames_onto_one_name_leave_it_there_always(pair: Pair) -> None:
    """rename(2) is atomic for all clients: a reader elsewhere never misses the name, and sees whole files."""
    (pair.one / "target").write_text("0" * 1000)

    def replace(mount: Path, digit: str) -> None:
        for number in range(100):
            draft = mount / f"draft-{digit}-{number}"
            draft.write_text(digit * 1000)
            draft.rename(mount / "target")

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(replace, pair.one, "1"), threads.submit(replace, pair.two, "2")]
        seen: set[str] = set()
        while not all(future.done() for future in running):
            content = (pair.two / "target").read_text()
            assert len(content) == 1000
            seen.update(content)
            assert len(set(content)) == 1
        for future in running:
            future.result()
    assert seen <= {"0", "1", "2"}
    assert os.listdir(pair.export) == ["target"]


def test_exchange_and_noreplace(pair: Pair) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def rename(old: Path, new: Path, flags: int) -> int:
        return 0 if libc.renameat2(-100, bytes(old), -100, bytes(new), flags) == 0 else ctypes.get_errno()

    (pair.one / "a").write_text("a")
    (pair.one / "b").write_text("b")
    assert rename(pair.two / "a", pair.two / "b", 1) == errno.EEXIST
    assert rename(pair.two / "a", pair.two / "b", 2) == 0
    assert ((pair.one / "a").read_text(), (pair.one / "b").read_text()) == ("b", "a")
    assert rename(pair.two / "a", pair.two / "c", 1) == 0
    assert sorted(os.listdir(pair.one)) == ["b", "c"]
