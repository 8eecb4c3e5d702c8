"""The Linux system calls that Python's os module lacks, by ctypes; each raises OSError as os functions do.

ctypes releases the GIL during these calls. Buffers are made per call: that costs 0.2 us, and sharing one per
thread would be ambient state.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from nfsfuse.protocol.types import Attributes, nearest_time

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

HANDLE_SIZE_MAX: Final = 128
"""Bytes: MAX_HANDLE_SZ of <fcntl.h>."""

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000
STATX_ATTRIBUTES_AT: Final = 8
STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20
_STATX_WANTED: Final = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
_STATX_SIZE: Final = 256

# struct statx of <linux/stat.h>: mask, -, nlink, uid, gid, mode, ino, size, blocks, then (s, ns) of atime,
# btime, ctime, mtime, then rdev and dev as major, minor, and the mount's id.
_STATX: Final = struct.Struct("=I12xIIIHxxQQQ8xqI4xqI4xqI4xqI4xIIIIQ")

# struct file_handle: handle_bytes, handle_type, then room for the handle; and for the mount's id.
_HANDLE: Final = struct.Struct(f"=I4s{HANDLE_SIZE_MAX}si")
_MOUNT_ID_AT: Final = 8 + HANDLE_SIZE_MAX
_HANDLE_EMPTY: Final = _HANDLE.pack(HANDLE_SIZE_MAX, b"", b"", 0)

# struct linux_dirent64: d_ino, d_off, d_reclen, d_type; the name follows.
_DIRENT: Final = struct.Struct("=QqHB")

_StatxBuffer = ctypes.c_char * _STATX_SIZE
_HandleBuffer = ctypes.c_char * len(_HANDLE_EMPTY)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_int, _pointer, _path, _offset = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64

_statx = _libc.statx
_statx.argtypes = [_int, _path, _int, ctypes.c_uint, _pointer]
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = [_int, _path, _pointer, _pointer, _int]
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = [_int, _pointer, _int]
_getdents64 = _libc.getdents64
_getdents64.argtypes = [_int, _pointer, ctypes.c_size_t]
_getdents64.restype = ctypes.c_ssize_t
_renameat2 = _libc.renameat2
_renameat2.argtypes = [_int, _path, _int, _path, ctypes.c_uint]
_fallocate = _libc.fallocate
_fallocate.argtypes = [_int, _int, _offset, _offset]
_fchownat = _libc.fchownat
_fchownat.argtypes = [_int, _path, ctypes.c_uint32, ctypes.c_uint32, _int]
_utimensat = _libc.utimensat
_utimensat.argtypes = [_int, _path, _pointer, _int]


class Identity(NamedTuple):
    """An inode in its place: attributes, device number, and the mount it was reached through."""

    attributes: Attributes
    device: int
    mount_id: int


class RawEntry(NamedTuple):
    """One struct linux_dirent64."""

    name: bytes
    cookie: int  # d_off
    ino: int


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def attributes_of(fd: int) -> Attributes:
    """statx(2) of an open descriptor (O_PATH too)."""
    return _attributes(_statx_fields(fd))


def protection_of(fd: int) -> int:
    """Of STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND what the inode has."""
    buffer = _StatxBuffer()
    if _statx(fd, b"", AT_EMPTY_PATH, 0, buffer) < 0:
        raise _failure()
    (attributes,) = struct.unpack_from("=Q", buffer, STATX_ATTRIBUTES_AT)
    return int(attributes) & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)


def identity_of(fd: int) -> Identity:
    """statx(2) of an open descriptor (O_PATH too), with what tells filesystems and mounts apart."""
    fields = _statx_fields(fd)
    *_, dev_major, dev_minor, mount_id = fields
    return Identity(_attributes(fields), (dev_major << 32) | dev_minor, mount_id)


def _statx_fields(fd: int) -> tuple[int, ...]:
    buffer = _StatxBuffer()
    if _statx(fd, b"", AT_EMPTY_PATH, _STATX_WANTED, buffer) < 0:
        raise _failure()
    return _STATX.unpack_from(buffer)


def _attributes(fields: tuple[int, ...]) -> Attributes:
    (
        mask, nlink, uid, gid, mode, ino, size, blocks, atime, atime_ns, btime, btime_ns, ctime, ctime_ns,
        mtime, mtime_ns, rdev_major, rdev_minor, _, _, _,
    ) = fields  # fmt: skip
    return Attributes(
        ino, mode, nlink, uid, gid,
        os.makedev(rdev_major, rdev_minor) if rdev_major or rdev_minor else 0,
        size, blocks,
        nearest_time(atime * 1_000_000_000 + atime_ns),
        nearest_time(mtime * 1_000_000_000 + mtime_ns),
        nearest_time(ctime * 1_000_000_000 + ctime_ns),
        nearest_time(btime * 1_000_000_000 + btime_ns) if mask & STATX_BTIME else 0,
    )  # fmt: skip


def name_to_handle(dir_fd: int, name: bytes) -> tuple[bytes, int]:
    """name_to_handle_at(2) without following a link: handle type (4 bytes, native) and handle, and mount id.

    An empty *name* is *dir_fd* itself. EOPNOTSUPP where the filesystem has no handles.
    """
    buffer = _HandleBuffer.from_buffer_copy(_HANDLE_EMPTY)
    flags = 0 if name else AT_EMPTY_PATH
    if _name_to_handle_at(dir_fd, name, buffer, ctypes.byref(buffer, _MOUNT_ID_AT), flags) < 0:
        raise _failure()
    size, kind, body, mount_id = _HANDLE.unpack_from(buffer)
    return kind + body[:size], mount_id


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2) of what `name_to_handle` returned. ESTALE; EPERM without CAP_DAC_READ_SEARCH."""
    fd: int = _open_by_handle_at(mount_fd, struct.pack("=I", len(handle) - 4) + handle, flags)
    if fd < 0:
        raise _failure()
    return fd


def getdents(fd: int, size: int) -> list[RawEntry]:
    """getdents64(2) with a buffer of *size* bytes: the next entries, "." and ".." among them; [] at the
    end."""
    buffer = ctypes.create_string_buffer(size)
    filled = _getdents64(fd, buffer, size)
    if filled < 0:
        raise _failure()
    data = buffer.raw
    entries = []
    position = 0
    while position < filled:
        ino, cookie, length, _ = _DIRENT.unpack_from(data, position)
        start = position + _DIRENT.size
        entries.append(RawEntry(data[start : data.index(b"\0", start)], cookie, ino))
        position += length
    return entries


def renameat2(old_dir_fd: int, old: bytes, new_dir_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(old_dir_fd, old, new_dir_fd, new, flags) < 0:
        raise _failure()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), restarted after a signal."""
    while _fallocate(fd, mode, offset, length) < 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _failure()


def chown(fd: int, uid: int | None, gid: int | None) -> None:
    """fchownat(2) of an open descriptor (O_PATH too, of a symbolic link too); None leaves one as it is."""
    keep = 2**32 - 1
    owner, group = (keep if number is None else number for number in (uid, gid))
    if _fchownat(fd, b"", owner, group, AT_EMPTY_PATH) < 0:
        raise _failure()


def utimens(path: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2); times are (seconds, nanoseconds), the latter perhaps UTIME_NOW or UTIME_OMIT."""
    if _utimensat(AT_FDCWD, path, struct.pack("=qqqq", *atime, *mtime), 0) < 0:
        raise _failure()
