"""What every storage does with the content of files."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import OFFSET_MAX, AttributeChanges, Credentials, InodeHandle
from nfsfuse_server.storage.interface import Storage

ME = Credentials(os.geteuid(), os.getegid())
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
TERABYTE = 1 << 40


@contextmanager
def raises(*numbers: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


@pytest.fixture
def file(storage: Storage) -> InodeHandle:
    return storage.create(storage.root().handle, b"file", 0o644, ME).handle


def test_write_and_read(storage: Storage, file: InodeHandle) -> None:
    assert storage.read(file, 0, 10) == b""
    assert storage.write(file, 0, b"hello").size == 5
    assert storage.write(file, 3, memoryview(b"xyz!")[1:]).size == 6
    assert storage.read(file, 0, 100) == b"helyz!"
    assert storage.read(file, 2, 2) == b"ly"
    assert storage.read(file, 6, 10) == b""
    assert storage.read(file, 7, 10) == b""
    assert storage.read(file, 0, 0) == b""
    assert storage.write(file, 100, b"").size == 6
    assert storage.write(file, 10, b"end").size == 13
    assert storage.read(file, 5, 8) == b"!\0\0\0\0end"


def test_large_and_unaligned(storage: Storage, file: InodeHandle) -> None:
    content = bytes(range(256)) * 9000
    storage.write(file, 4095, content)
    assert storage.read(file, 4095, len(content) + 1) == content
    assert storage.read(file, 0, 4096) == bytes(4095) + content[:1]
    storage.write(file, 8191, b"\xaa\xbb")
    assert storage.read(file, 8190, 4) == content[4095:4096] + b"\xaa\xbb" + content[4098:4099]


def test_write_tells_the_attributes_after_it(storage: Storage, file: InodeHandle) -> None:
    old = storage.setattr(file, AttributeChanges(mtime_ns=1)).mtime_ns
    found = storage.write(file, 0, b"x" * 4096)
    assert found.mtime_ns > old
    assert found == storage.getattr(file)


def test_read_nowait_is_everything_or_none(storage: Storage, file: InodeHandle) -> None:
    storage.write(file, 0, b"x" * 10_000)
    for offset, size in ((0, 10_000), (0, 4096), (9_000, 5_000), (10_000, 1), (20_000, 1), (0, 0)):
        assert storage.read_nowait(file, offset, size) in (None, b"x" * max(0, min(size, 10_000 - offset)))


def test_the_largest_file_is_what_it_says(storage: Storage, file: InodeHandle) -> None:
    largest = storage.file_size_max
    assert storage.setattr(file, AttributeChanges(size=largest)).size == largest
    storage.setattr(file, AttributeChanges(size=0))
    with raises(errno.EFBIG, errno.EINVAL):
        storage.setattr(file, AttributeChanges(size=largest + 1))
    with raises(errno.EFBIG):
        storage.write(file, largest, b"x")
    assert storage.getattr(file).size == 0


def test_offsets_and_sizes_out_of_range(storage: Storage, file: InodeHandle) -> None:
    for offset, size in ((-1, 1), (OFFSET_MAX + 1, 1), (2**64, 1), (0, -1)):
        with raises(errno.EINVAL):
            storage.read(file, offset, size)
        with raises(errno.EINVAL):
            storage.read_nowait(file, offset, size)
    for offset in (-1, OFFSET_MAX + 1, 2**64):
        with raises(errno.EINVAL):
            storage.write(file, offset, b"x")
        with raises(errno.EINVAL):
            storage.seek(file, offset, os.SEEK_DATA)
    with raises(errno.EFBIG):
        storage.write(file, OFFSET_MAX, b"x")
    assert storage.getattr(file).size == 0


def test_io_is_for_regular_files_only(storage: Storage, as_root: None) -> None:
    root = storage.root().handle
    others = [
        storage.mknod(root, b"fifo", stat.S_IFIFO | 0o666, 0, ME).handle,
        storage.mknod(root, b"socket", stat.S_IFSOCK | 0o666, 0, ME).handle,
        storage.mknod(root, b"zero", stat.S_IFCHR | 0o666, os.makedev(1, 5), ME).handle,
        storage.mknod(root, b"loop", stat.S_IFBLK | 0o666, os.makedev(7, 200), ME).handle,
        storage.symlink(root, b"link", b"/etc/hostname", ME).handle,
    ]
    plain = storage.create(root, b"plain", 0o644, ME).handle
    for handle, number in [(root, errno.EISDIR), *((other, errno.EINVAL) for other in others)]:
        for attempt in (
            lambda handle=handle: storage.read(handle, 0, 1),
            lambda handle=handle: storage.read_nowait(handle, 0, 1),
            lambda handle=handle: storage.write(handle, 0, b"x"),
            lambda handle=handle: storage.fallocate(handle, 0, 0, 1),
            lambda handle=handle: storage.seek(handle, 0, os.SEEK_HOLE),
            lambda handle=handle: storage.copy_range(handle, 0, plain, 0, 1),
            lambda handle=handle: storage.copy_range(plain, 0, handle, 0, 1),
        ):
            with raises(number):
                attempt()
    for other in others:
        with raises(errno.EINVAL):
            storage.fsync(other, False)


def test_a_sparse_file_of_4_tib(storage: Storage, file: InodeHandle) -> None:
    storage.write(file, 0, b"start")
    assert storage.setattr(file, AttributeChanges(size=4 * TERABYTE)).size == 4 * TERABYTE
    found = storage.write(file, 4 * TERABYTE - 4096, b"e" * 4096)
    assert found.size == 4 * TERABYTE
    assert found.blocks < 1000
    assert storage.read(file, 2 * TERABYTE, 10) == bytes(10)
    assert storage.read(file, 4 * TERABYTE - 2, 10) == b"ee"
    assert storage.seek(file, 0, os.SEEK_DATA) == 0
    hole = storage.seek(file, 0, os.SEEK_HOLE)
    assert 5 <= hole <= 1 << 21
    assert storage.seek(file, hole, os.SEEK_DATA) > 3 * TERABYTE


def test_seek_data_and_hole(storage: Storage, file: InodeHandle) -> None:
    with raises(errno.ENXIO):
        storage.seek(file, 0, os.SEEK_DATA)
    with raises(errno.ENXIO):
        storage.seek(file, 0, os.SEEK_HOLE)
    storage.setattr(file, AttributeChanges(size=40960))
    with raises(errno.ENXIO):
        storage.seek(file, 0, os.SEEK_DATA)
    assert storage.seek(file, 100, os.SEEK_HOLE) == 100
    storage.write(file, 8192, b"x" * 4096)
    assert storage.seek(file, 100, os.SEEK_DATA) == 8192
    assert storage.seek(file, 8200, os.SEEK_DATA) == 8200
    assert storage.seek(file, 8200, os.SEEK_HOLE) == 12288
    with raises(errno.ENXIO):
        storage.seek(file, 12288, os.SEEK_DATA)
    with raises(errno.ENXIO):
        storage.seek(file, 40960, os.SEEK_HOLE)
    with raises(errno.EINVAL):
        storage.seek(file, 0, os.SEEK_SET)


def test_fallocate(storage: Storage, file: InodeHandle) -> None:
    assert storage.fallocate(file, 0, 0, 10_000).size == 10_000
    assert storage.fallocate(file, KEEP_SIZE, 0, 20_000).size == 10_000
    storage.write(file, 0, b"x" * 16384)
    found = storage.fallocate(file, PUNCH_HOLE | KEEP_SIZE, 100, 8192)
    assert found.size == 16384
    assert storage.read(file, 0, 20_000) == b"x" * 100 + bytes(8192) + b"x" * 8092
    storage.fallocate(file, PUNCH_HOLE | KEEP_SIZE, 16000, 10)
    assert storage.read(file, 15999, 12) == b"x" + bytes(10) + b"x"
    for mode, offset, length in ((0, -1, 1), (0, 0, 0), (0, 0, -1)):
        with raises(errno.EINVAL):
            storage.fallocate(file, mode, offset, length)
    with raises(errno.EOPNOTSUPP):
        storage.fallocate(file, PUNCH_HOLE, 0, 1)
    with raises(errno.EFBIG):
        storage.fallocate(file, 0, OFFSET_MAX, 1)


def test_zero_range_where_there_is_one(storage: Storage, file: InodeHandle) -> None:
    storage.write(file, 0, b"x" * 5000)
    with suppress(FsError):  # tmpfs has none, and then must change nothing
        assert storage.fallocate(file, ZERO_RANGE, 4000, 2000).size == 6000
        assert storage.read(file, 0, 6000) == b"x" * 4000 + bytes(2000)
        return
    assert storage.read(file, 0, 6000) == b"x" * 5000


def test_copy_range(storage: Storage, file: InodeHandle) -> None:
    content = bytes(range(250)) * 40
    storage.write(file, 0, content)
    other = storage.create(storage.root().handle, b"other", 0o644, ME).handle
    done = 0
    while count := storage.copy_range(file, 10 + done, other, 5 + done, len(content)):
        done += count
    assert done == len(content) - 10
    assert storage.read(other, 0, len(content)) == bytes(5) + content[10:]
    with raises(errno.EINVAL):
        storage.copy_range(file, 0, file, 100, 200)
    assert storage.copy_range(file, 0, file, 20_000, 100) == 100
    assert storage.read(file, 20_000, 200) == content[:100]


def test_fsync_takes_files_and_directories(storage: Storage, file: InodeHandle) -> None:
    root = storage.root().handle
    storage.write(file, 0, b"x")
    storage.fsync(file, datasync=True)
    storage.fsync(file, datasync=False)
    storage.fsync(root, datasync=False)
    storage.fsync_dir(root)
    with raises(errno.ENOTDIR):
        storage.fsync_dir(file)


def test_threads_read_and_write_one_file(storage: Storage, file: InodeHandle) -> None:
    def run(number: int) -> None:
        for turn in range(100):
            block = bytes([number]) * 512
            storage.write(file, (turn * 4 + number) * 512, block)
            assert storage.read(file, (turn * 4 + number) * 512, 512) == block

    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            run(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert storage.getattr(file).size == 400 * 512
