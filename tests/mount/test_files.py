"""Files, names and special files through a mount."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair


def test_names_of_every_byte(pair: Pair) -> None:
    names = [b"%c." % byte for byte in range(1, 256) if byte not in b"./"]
    names += [
        b"x" * 255,
        b"\xc3\xa9" * 127,
        b" ",
        b"-rf",
        b"*",
        b"...",
        bytes(range(1, 47)) + bytes(range(48, 256)),
    ]
    for name in names:
        with open(os.path.join(os.fsencode(pair.one), name), "wb") as file:
            file.write(name)
    for mount in map(os.fsencode, (pair.one, pair.two, pair.export)):
        assert sorted(os.listdir(mount)) == sorted(names)
        for name in names:
            with open(os.path.join(mount, name), "rb") as file:
                assert file.read() == name


def test_names_too_long_are_refused(pair: Pair) -> None:
    for call in (os.mkdir, os.stat, os.mkfifo):
        with pytest.raises(OSError, match="too long") as caught:
            call(pair.one / ("x" * 256))
        assert caught.value.errno == errno.ENAMETOOLONG


def test_sparse_files_stay_sparse(pair: Pair) -> None:
    size = 4 << 40
    with (pair.one / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
        file.seek(1 << 40)
        file.write(b"middle")
    status = (pair.two / "sparse").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 <= 64 << 10
    descriptor = os.open(pair.two / "sparse", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 100, size - 3) == b"end"
        assert os.pread(descriptor, 8, (1 << 40) - 1) == b"\0middle\0"
        assert os.pread(descriptor, 1 << 20, 3 << 40) == bytes(1 << 20)
    finally:
        os.close(descriptor)


def test_no_larger_than_the_largest_file(pair: Pair) -> None:
    descriptor = os.open(pair.one / "file", os.O_RDWR | os.O_CREAT)
    local = os.open(pair.export / "local", os.O_RDWR | os.O_CREAT)
    try:
        for size in ((1 << 63) - 1, 1 << 60):
            with pytest.raises(OSError, match="too large") as expected:
                os.ftruncate(local, size)
            with pytest.raises(OSError, match="too large") as caught:
                os.ftruncate(descriptor, size)
            assert caught.value.errno == expected.value.errno
    finally:
        os.close(descriptor)
        os.close(local)


def test_random_access_reads_what_was_written(pair: Pair) -> None:
    draw = random.Random(7)
    expected = bytearray(3 << 20)
    writer = os.open(pair.one / "file", os.O_RDWR | os.O_CREAT)
    reader = os.open(pair.two / "file", os.O_RDONLY)
    try:
        os.ftruncate(writer, len(expected))
        for _ in range(100):
            data = draw.randbytes(draw.choice((1, 100, 4096, 5000, 1 << 20)))
            offset = draw.randrange(len(expected) - len(data))
            assert os.pwrite(writer, data, offset) == len(data)
            expected[offset : offset + len(data)] = data
            offset, size = draw.randrange(len(expected)), draw.choice((1, 4096, 1 << 20))
            assert os.pread(reader, size, offset) == expected[offset : offset + size]
    finally:
        os.close(writer)
        os.close(reader)
    assert (pair.export / "file").read_bytes() == expected


@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999_999, -1, -2_000_000_001, 4_000_000_000_123_456_789])
def test_times_to_the_nanosecond(pair: Pair, nanoseconds: int) -> None:
    (pair.one / "file").touch()
    os.utime(pair.one / "file", ns=(nanoseconds, nanoseconds))
    os.utime(pair.export, ns=(nanoseconds, nanoseconds))
    expected = (pair.export / "file").stat()
    found = (pair.two / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (expected.st_atime_ns, expected.st_mtime_ns)
    assert found.st_mtime_ns == nanoseconds
    assert pair.two.stat().st_mtime_ns == nanoseconds


def test_a_fifo_connects_programs_of_one_mount(pair: Pair) -> None:
    os.mkfifo(pair.one / "fifo")
    assert stat.S_ISFIFO((pair.two / "fifo").stat().st_mode)
    reader = os.open(pair.one / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with (pair.one / "fifo").open("w") as writer:
            writer.write("through the kernel")
        assert select.select([reader], [], [], 10)[0]
        assert os.read(reader, 100) == b"through the kernel"
    finally:
        os.close(reader)


def test_a_socket_connects_programs_of_one_mount(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair.one)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("socket")
        listener.listen()
        client.settimeout(10)
        client.connect("socket")
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
    assert stat.S_ISSOCK((pair.two / "socket").stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_device_nodes_are_kept_but_not_opened(pair: Pair) -> None:
    device = os.makedev(1, 3)
    os.mknod(pair.one / "null", stat.S_IFCHR | 0o666, device)
    status = (pair.two / "null").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == device
    with pytest.raises(PermissionError):
        (pair.two / "null").open()  # mounts are nodev unless -o dev is given


def test_statfs_is_the_servers(mounts: Mounts, pair: Pair) -> None:
    expected, found = os.statvfs(pair.export), os.statvfs(pair.two)
    for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(found, name) == getattr(expected, name), name


def test_symbolic_links_are_followed_by_the_client_alone(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("of the client")
    os.symlink(tmp_path / "outside", pair.one / "absolute")
    os.symlink("../" * 20 + "etc/passwd", pair.one / "climbing")
    os.symlink("absolute", pair.one / "relative")
    assert (pair.two / "relative").read_text() == "of the client"
    assert os.readlink(pair.two / "climbing") == "../" * 20 + "etc/passwd"
    os.symlink("loop", pair.one / "loop")
    with pytest.raises(OSError, match="Too many levels") as caught:
        (pair.two / "loop").read_text()
    assert caught.value.errno == errno.ELOOP


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_permissions_hold_for_others(pair: Pair) -> None:
    (pair.one / "secret").write_text("root's")
    (pair.one / "secret").chmod(0o600)
    pair.one.chmod(0o1777)
    script = """
import errno, os, sys
os.setgid(4321); os.setuid(1234)
os.chdir(sys.argv[1])
for call in (lambda: open("secret"), lambda: os.unlink("secret"), lambda: os.chmod("secret", 0o666)):
    try:
        call()
    except PermissionError:
        continue
    sys.exit("allowed")
os.mkdir("mine", 0o700)
open("mine/file", "w").close()
status = os.stat("mine/file")
assert (status.st_uid, status.st_gid) == (1234, 4321), status
"""
    descriptor = os.open(pair.one, os.O_PATH)  # the directories above are root's alone
    try:
        path = f"/proc/self/fd/{descriptor}"
        subprocess.run([sys.executable, "-c", script, path], pass_fds=[descriptor], check=True, timeout=60)
    finally:
        os.close(descriptor)
    assert (pair.export / "mine/file").stat().st_uid == 1234


def test_an_empty_or_large_extended_attribute(pair: Pair) -> None:
    (pair.one / "file").touch()
    for value in (b"", b"\0", bytes(range(256)) * 8):
        os.setxattr(pair.one / "file", "user.value", value)
        assert os.getxattr(pair.two / "file", "user.value") == value
    with pytest.raises(OSError, match="exists"):
        os.setxattr(pair.two / "file", "user.value", b"", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(pair.two / "file", "user.other", b"", os.XATTR_REPLACE)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(pair.two / "file", "user.other")


def test_many_programs_at_once(pair: Pair) -> None:
    """More requests than the kernel sends at once, answered out of order."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mount = (pair.one, pair.two)[number % 2]
            for round_ in range(10):
                path = mount / f"{number}-{round_}"
                path.write_bytes(bytes([number]) * 10_000)
                assert path.read_bytes() == bytes([number]) * 10_000
                if round_ % 2:
                    path.unlink()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(os.listdir(pair.export)) == 200
