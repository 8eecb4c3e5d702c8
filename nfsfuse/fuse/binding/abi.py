"""The part of the kernel's FUSE ABI that we speak ourselves: <linux/fuse.h>, which only ever grows.

Structures are little `struct.Struct` objects named after the kernel's. All are native-endian and padded to 64
bits by explicit fields, so ``=`` (no implicit padding) is right on every architecture.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final


class Opcode(IntEnum):
    """Operations named by this package; the kernel has more."""

    LOOKUP = 1
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    FALLOCATE = 43
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51  # Linux 6.1
    STATX = 52  # Linux 6.6
    COPY_FILE_RANGE_64 = 53  # Linux 6.18


class NotifyCode(IntEnum):
    """enum fuse_notify_code."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    DELETE = 6
    INC_EPOCH = 8  # Linux 6.16


class InitFlag(IntFlag):
    """``fuse_init_in.flags`` in bits 0-31, ``flags2`` in bits 32-63."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


WRITE_CACHE: Final = 1 << 0
WRITE_LOCKOWNER: Final = 1 << 1
WRITE_KILL_SUIDGID: Final = 1 << 2
RELEASE_FLUSH: Final = 1 << 0
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FSYNC_FDATASYNC: Final = 1 << 0
GETATTR_FH: Final = 1 << 0
"""Set where the kernel asks for itself, to learn a regular file's size: before a read(2) near its end, for
lseek(2) (`fuse_update_attributes`). For stat(2) and fstat(2) it is not (`fuse_getattr` passes no file)."""
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
LK_FLOCK: Final = 1 << 0
EXPIRE_ONLY: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3

FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FSSETXATTR: Final = 0x401C5820
"""ioctl(2) commands that the kernel itself asks with, for whoever asks it (fuse_fileattr_get and
fuse_fileattr_set in fs/fuse/ioctl.c)."""
FLAGS = Struct("=I")  # of the first two, whatever size their numbers say
FSXATTR = Struct("=IIIII8x")  # struct fsxattr: xflags, extsize, nextents, projid, cowextsize

OUT_HEADER = Struct("=IiQ")  # len, error, unique
INIT_IN = Struct("=IIIII44x")  # major, minor, max_readahead, flags, flags2
INIT_OUT = Struct("=IIIIHHIIHHI28x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2
INTERRUPT_IN = Struct("=Q")  # unique of the interrupted request
LK_IN = Struct("=QQQQIIII")  # fh, owner, start, end, type, pid, lk_flags, padding
LK_OUT = Struct("=QQII")  # start, end, type, pid
FALLOCATE_IN = Struct("=QQQII")  # fh, offset, length, mode, padding
LSEEK_IN = Struct("=QqII")  # fh, offset, whence, padding
LSEEK_OUT = Struct("=Q")  # offset
IOCTL_IN = Struct("=QIIQII")  # fh, flags, cmd, arg, in_size, out_size; data of in_size bytes follow
IOCTL_OUT = Struct("=iIII")  # result, flags, in_iovs, out_iovs; data follow
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes copied, for COPY_FILE_RANGE_64
WRITE_OUT = Struct("=II")  # size, padding; also the reply to the 32-bit COPY_FILE_RANGE
READ_IN = Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = READ_IN  # with write_flags; the data follow
CREATE_IN = Struct("=IIII")  # flags, mode, umask, open_flags; a name follows
SETXATTR_IN = Struct("=IIII")  # value size, flags, setxattr_flags, padding; name and value follow
SETXATTR_IN_SHORT = Struct("=II")  # the same without FUSE_SETXATTR_EXT
GETXATTR_IN = Struct("=II")  # size, padding; GETXATTR has a name after it, LISTXATTR has not
GETXATTR_OUT = Struct("=II")  # size, padding: the answer if the request's size was 0
ATTR_OUT = Struct("=QII")  # attr_valid, attr_valid_nsec, padding; ATTR follows
STATX_IN = Struct("=IIQII")  # getattr_flags, reserved, fh, sx_flags, sx_mask
STATX_OUT = Struct("=QII16x")  # attr_valid, attr_valid_nsec, flags; a statx follows
STATX = Struct("=IIQIIIHHQQQQ" + "qIi" * 4 + "IIII112x")
# mask, blksize, attributes, nlink, uid, gid, mode, spare, ino, size, blocks, attributes_mask; atime, btime,
# ctime, mtime as (seconds, nanoseconds, reserved); rdev major, minor, dev major, minor
ATTR = Struct("=QQQqqqIIIIIIIIII")
# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev,
# blksize, flags
ENTRY_OUT = Struct("=QQQQII")  # nodeid, generation, entry_valid, attr_valid, entry_ and attr_valid_nsec; ATTR
OPEN_OUT = Struct("=QIi")  # fh, open_flags, backing_id
DIRENT = Struct("=QQII")  # ino, off, namelen, type; the name follows, padded to 8 bytes
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # ino, off, len
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")  # parent, namelen, flags; name and NUL follow
NOTIFY_DELETE_OUT = Struct("=QQII")  # parent, child, namelen, padding; name and NUL follow
NOTIFY_STORE_OUT = Struct("=QQII")  # nodeid, offset, size, padding; data follows


def split_seconds(seconds: float) -> tuple[int, int]:
    """A timeout as the kernel wants it: whole seconds and nanoseconds."""
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)
