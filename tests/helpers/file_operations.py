"""A seeded stream of file operations, and their application to a directory.

The same stream is applied to a mount and to a local directory: results, errnos and the trees must not differ.
Operations are plain data; what they need of each other (open files) they name by number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import time
from collections.abc import Callable
from typing import Any, Final

Operation = tuple[Any, ...]
"""A method's name of `Directory` and its arguments."""

SLOTS: Final = 6
"""Open files at once."""

_DIRECTORIES: Final = (b".", b"d1", b"d2", b"d1/inner", "d2/gr\u00fcn".encode())
_NAMES: Final = (b"a", b"b", b"c", b"line\nbreak", b"\xff\xfe not utf-8", b"n" * 255, b"n" * 256)
_ATTRIBUTES: Final = ("user.a", "user.b", "user.empty")
_TYPES: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)  # no devices: a mount is nodev, and open EACCES
_RENAME_FLAGS: Final = (0, 0, 0, 1, 2, 3)  # NOREPLACE, EXCHANGE, and both: EINVAL
_OPEN_FLAGS: Final = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDWR | os.O_NOFOLLOW,
)


def generate(seed: int, count: int) -> list[Operation]:
    """*count* operations; the same for the same *seed*."""
    draw = random.Random(seed)
    operations: list[Operation] = [("mkdir", name, 0o755) for name in _DIRECTORIES[1:]]

    def path() -> bytes:
        return os.path.join(draw.choice(_DIRECTORIES), draw.choice(_NAMES))

    def anything() -> bytes:
        return path() if draw.random() < 0.8 else draw.choice(_DIRECTORIES)

    def slot() -> int:
        return draw.randrange(SLOTS)

    def data() -> bytes:
        return draw.randbytes(draw.choice((1, 10, 4096, 5000, 70_000, 300_000)))

    def offset() -> int:
        return draw.choice((0, 1, 4095, 4096, 10_000, 200_000, draw.randrange(1 << 20), 1 << 40))

    def time_ns() -> int:
        return draw.randrange(-(1 << 30), 1 << 32) * 1_000_000_000 + draw.randrange(1_000_000_000)

    makers: dict[str, tuple[int, Callable[[], Operation]]] = {
        "open": (14, lambda: (slot(), path(), draw.choice(_OPEN_FLAGS), draw.choice((0o644, 0o600, 0o4755)))),
        "close": (4, lambda: (slot(),)),
        "write": (14, lambda: (slot(), offset(), data())),
        "append": (6, lambda: (slot(), data())),
        "read": (12, lambda: (slot(), offset(), draw.choice((1, 4096, 100_000, 1 << 20)))),
        "truncate_open": (3, lambda: (slot(), offset())),
        "fstat": (4, lambda: (slot(),)),
        "fsync": (1, lambda: (slot(),)),
        "truncate": (3, lambda: (path(), offset())),
        "stat": (6, lambda: (anything(),)),
        "access": (3, lambda: (anything(), draw.choice((os.F_OK, os.R_OK, os.W_OK, os.X_OK)))),
        "listing": (3, lambda: (draw.choice(_DIRECTORIES),)),
        "mkdir": (4, lambda: (anything(), draw.choice((0o755, 0o1777, 0o2750)))),
        "rmdir": (4, lambda: (anything(),)),
        "unlink": (8, lambda: (anything(),)),
        "rename": (10, lambda: (anything(), anything(), draw.choice(_RENAME_FLAGS))),
        "link": (6, lambda: (path(), path())),
        "symlink": (4, lambda: (draw.choice((b"a", b"../b", b"nowhere", b"", b"x" * 4095)), path())),
        "readlink": (3, lambda: (anything(),)),
        "mknod": (3, lambda: (path(), draw.choice(_TYPES) | 0o640)),
        "chmod": (4, lambda: (anything(), draw.choice((0o600, 0o755, 0o6755, 0o1777)))),
        "chown": (3, lambda: (anything(), draw.choice((-1, 0, 1234)), draw.choice((-1, 0, 5678)))),
        "utime": (4, lambda: (anything(), time_ns(), time_ns())),
        "setxattr": (
            4,
            lambda: (anything(), draw.choice(_ATTRIBUTES), data()[:200], draw.choice((0, 0, 1, 2))),
        ),
        "getxattr": (3, lambda: (anything(), draw.choice(_ATTRIBUTES))),
        "listxattr": (2, lambda: (anything(),)),
        "removexattr": (2, lambda: (anything(), draw.choice(_ATTRIBUTES))),
    }
    names = list(makers)
    for name in draw.choices(names, [makers[name][0] for name in names], k=count):
        operations.append((name, *makers[name][1]()))
    return operations


class Directory:
    """Applies operations below *root*. Every method returns what a program would see of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.fsencode(root)
        self._open: dict[int, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)

    def apply(self, operation: Operation) -> object:
        """The result, or the errno's name."""
        name, *arguments = operation
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except OSError as exc:
            return os.strerror(exc.errno or 0)

    def close_all(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def tree(self) -> dict[bytes, object]:
        """Everything in it, by path: what stat, readlink, the extended attributes and the content say."""
        found: dict[bytes, object] = {}
        for directory, directories, files in os.walk(self._root):
            for name in [*directories, *files]:
                path = os.path.join(directory, name)
                relative = os.path.relpath(path, self._root)
                status = os.lstat(path)
                found[relative] = (self._status(status), self._content(path, status), self._attributes(path))
        return found

    def _content(self, path: bytes, status: os.stat_result) -> object:
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            head = file.read(1 << 21)
            file.seek(max(status.st_size - 4096, 0))
            return head, file.read()

    def _attributes(self, path: bytes) -> object:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)}

    def _status(self, status: os.stat_result) -> object:
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        # A time that utime has set must agree; others are of the clock, and do not quite. The time of the
        # last access changes with every look at the tree (relatime).
        times = [] if _of_this_clock(status.st_mtime_ns) else [status.st_mtime_ns]
        return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev, times

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def _file(self, slot: int) -> int:
        if slot not in self._open:
            raise OSError(errno.EBADF, "nothing is open there")
        return self._open[slot]

    def _open_slot(self, slot: int, descriptor: int) -> None:
        if slot in self._open:
            os.close(self._open[slot])
        self._open[slot] = descriptor

    def do_open(self, slot: int, path: bytes, flags: int, mode: int) -> object:
        # Non-blocking: a FIFO without a peer would wait.
        self._open_slot(slot, os.open(self._path(path), flags | os.O_NONBLOCK, mode))
        return "opened"

    def do_close(self, slot: int) -> object:
        os.close(self._file(slot))
        del self._open[slot]
        return "closed"

    def do_write(self, slot: int, offset: int, data: bytes) -> object:
        return os.pwrite(self._file(slot), data, offset)

    def do_append(self, slot: int, data: bytes) -> object:
        os.lseek(self._file(slot), 0, os.SEEK_END)
        return os.write(self._file(slot), data), os.lseek(self._file(slot), 0, os.SEEK_CUR)

    def do_read(self, slot: int, offset: int, size: int) -> object:
        return os.pread(self._file(slot), size, offset)

    def do_truncate_open(self, slot: int, size: int) -> None:
        os.ftruncate(self._file(slot), size)

    def do_fstat(self, slot: int) -> object:
        return self._status(os.fstat(self._file(slot)))

    def do_fsync(self, slot: int) -> None:
        os.fsync(self._file(slot))

    def do_truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._path(path), size)

    def do_stat(self, path: bytes) -> object:
        return self._status(os.stat(self._path(path)))

    def do_access(self, path: bytes, mode: int) -> object:
        return os.access(self._path(path), mode)

    def do_listing(self, path: bytes) -> object:
        with os.scandir(self._path(path)) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)

    def do_mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._path(path), mode)

    def do_rmdir(self, path: bytes) -> None:
        os.rmdir(self._path(path))

    def do_unlink(self, path: bytes) -> None:
        os.unlink(self._path(path))

    def do_rename(self, old: bytes, new: bytes, flags: int) -> object:
        if self._libc.renameat2(-100, self._path(old), -100, self._path(new), flags) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
        return "renamed"

    def do_link(self, old: bytes, new: bytes) -> None:
        os.link(self._path(old), self._path(new), follow_symlinks=False)

    def do_symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._path(path))

    def do_readlink(self, path: bytes) -> object:
        return os.readlink(self._path(path))

    def do_mknod(self, path: bytes, mode: int) -> None:
        os.mknod(self._path(path), mode)

    def do_chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._path(path), mode)

    def do_chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._path(path), uid, gid)

    def do_utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> object:
        os.utime(self._path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        status = os.lstat(self._path(path))
        return status.st_atime_ns, status.st_mtime_ns

    def do_setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._path(path), name, value, flags, follow_symlinks=False)

    def do_getxattr(self, path: bytes, name: str) -> object:
        return os.getxattr(self._path(path), name, follow_symlinks=False)

    def do_listxattr(self, path: bytes) -> object:
        return sorted(os.listxattr(self._path(path), follow_symlinks=False))

    def do_removexattr(self, path: bytes, name: str) -> None:
        os.removexattr(self._path(path), name, follow_symlinks=False)


def _of_this_clock(time_ns: int) -> bool:
    return abs(time_ns - time.time_ns()) < 3600 * 1_000_000_000
