"""What the file server asks of the place where files are kept.

Operations are on inodes, named by handles; names occur only below a directory's handle, so no path is ever
walked here. Every method is synchronous and safe to call from several threads at once. Permissions are not
checked: the client's kernel has done so (``default_permissions``). What makes an inode applies the umask of its
`Credentials`, or the default ACL of its directory, and may tell in the `Node` that it is bare.

Errors: `FsError` is what the application on the client should see. Besides those named at a method, any may
raise ESTALE (the handle's inode is gone, or the handle was never issued here), EIO, ENOSPC, EDQUOT, EROFS and
ENFILE (out of descriptors). `StorageError` only ever comes out of a constructor.

Durability: "volatile" means that the effect survives the death of this process but not a power failure;
"durable" means that it is on stable storage when the method returns. Metadata operations are applied in
order: a power failure leaves the state after some prefix of them (ext4, XFS and btrfs).

An inode whose last link is gone is stale at once, unless it is pinned (`Storage.pin`). What is pinned when it
loses its last name becomes an *orphan*: it is kept in a hidden place of the export, with nlink 0 in all that is
told of it, so that the death of this process does not take it from whoever has it open. An orphan ends with
its last `unpin`; those that a server left behind when it died stay, with valid handles, until `sweep`. A
directory, which is empty when it goes, is never an orphan: its handle is stale after a restart.

The name ORPHANS_NAME in the root directory is reserved for that place: it is never found or listed (ENOENT),
and nothing can be made with it (EPERM).
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final, NamedTuple

from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import (
    ACL_ACCESS,
    OFFSET_MAX,
    AttributeChanges,
    Attributes,
    Credentials,
    FilesystemStatistics,
    InodeHandle,
    Node,
)

WHITEOUT_MODE: Final = stat.S_IFCHR
"""The mode of what is left then (WHITEOUT_MODE of <linux/fs.h>); its device number is 0."""


ORPHANS_NAME: Final = b".nfsfuse-orphans"
"""Reserved in the export's root, in every storage alike; a directory of the server's there holds orphans."""


BLOCKING: Final = frozenset({"copy_range", "fallocate", "fsync", "fsync_dir", "read", "sweep", "unpin"})
"""Methods that wait for the disk by nature, or free space: never on an event loop."""

AT_ONCE: Final = frozenset({"orphans", "read_nowait", "unpin_nowait"})
"""Methods that wait for nothing. All that are in neither table are usually answered from memory, and may wait
for the disk all the same: whoever serves others meanwhile lets `nfsfuse_server.service.disk` decide where
they run."""


class StorageError(Exception):
    """The storage cannot be used at all; the text says why and what the administrator can do."""


class Listed(NamedTuple):
    """One name of a listing. *cookie* is where the listing goes on after it, stable while the directory changes
    (the d_off of getdents64(2)); *handle* is None for a name that vanished meanwhile, or where another
    filesystem is mounted."""

    name: bytes
    cookie: int
    handle: InodeHandle | None


@record(frozen=True, slots=True)
class Renamed:
    """What a rename did, attributes as they are afterwards.

    *other* is the inode that had the new name: overwritten (nlink 0 if that was its last link), or with
    RENAME_EXCHANGE now found under the old name. *unchanged* is set where both names were links of one inode,
    or one and the same name: rename(2) then does nothing, and both names stay.
    """

    moved: Node
    other: Node | None
    unchanged: bool = False


class Storage(ABC):
    """One exported tree. See the module's text for threads, errors and durability."""

    file_size_max: int = OFFSET_MAX
    """Bytes: the largest file that the filesystem holds, so that who writes beyond is told at once (EFBIG); the
    largest offset there is, where that is not known."""

    keeps_access_times: bool = True
    """Whether reading changes the time of the last access at all (mount(8), noatime)."""

    # Names. `name` is 1 to 255 bytes without NUL and "/", and neither "." nor ".." (EINVAL, ENAMETOOLONG).
    # A parent that is no directory: ENOTDIR. All of them are volatile until `fsync_dir` of the parent(s).

    @abstractmethod
    def root(self) -> Node:
        """The exported directory."""

    @abstractmethod
    def lookup(self, parent: InodeHandle, name: bytes) -> Node:
        """The inode called *name*; symbolic links are not followed. ENOENT, EXDEV (another filesystem is
        mounted there)."""

    @abstractmethod
    def symlink(self, parent: InodeHandle, name: bytes, target: bytes, creds: Credentials) -> Node:
        """EEXIST; ENOENT for an empty *target*, ENAMETOOLONG from 4096 bytes on."""

    @abstractmethod
    def mknod(self, parent: InodeHandle, name: bytes, mode: int, rdev: int, creds: Credentials) -> Node:
        """Creates a regular file, FIFO, socket or device by the type in *mode* (0 is a regular file).
        EEXIST, EPERM (a directory, or a device where the server may not make one)."""

    @abstractmethod
    def mkdir(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        """EEXIST. Group and S_ISGID are inherited from a set-group-ID directory, here and in all
        creations."""

    @abstractmethod
    def create(self, parent: InodeHandle, name: bytes, mode: int, creds: Credentials) -> Node:
        """Creates a regular file, atomically. EEXIST, whatever has the name."""

    @abstractmethod
    def tmpfile(self, parent: InodeHandle, mode: int, creds: Credentials) -> Node:
        """Creates a regular file that has no name (O_TMPFILE), with the owner, the group and the ACL of one in
        *parent*. It is an orphan from the beginning, to be pinned by the caller; unlike others it can be given
        a name, once, by `link`. EOPNOTSUPP where there can be no orphans, or the filesystem has no such
        files."""

    @abstractmethod
    def link(self, handle: InodeHandle, parent: InodeHandle, name: bytes) -> Node:
        """EEXIST, EPERM (a directory), EMLINK, ENOENT (no link is left, and it is not from `tmpfile`)."""

    @abstractmethod
    def unlink(self, parent: InodeHandle, name: bytes) -> Node:
        """The inode that lost the name, as it is afterwards: nlink 0 if that was its last.
        ENOENT, EISDIR, EBUSY (a filesystem is mounted there)."""

    @abstractmethod
    def rmdir(self, parent: InodeHandle, name: bytes) -> Node:
        """The directory that is gone. ENOENT, ENOTDIR, ENOTEMPTY, EBUSY (a filesystem is mounted there)."""

    @abstractmethod
    def rename(
        self, parent: InodeHandle, name: bytes, new_parent: InodeHandle, new_name: bytes, flags: int
    ) -> Renamed:
        """*flags*: RENAME_NOREPLACE or RENAME_EXCHANGE, RENAME_WHITEOUT with neither or the former. Atomic.
        ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into its own subtree; other flags, or such as the
        filesystem has not), EBUSY (a filesystem is mounted there)."""

    @abstractmethod
    def readdir(self, handle: InodeHandle, cookie: int, limit: int) -> tuple[list[Listed], bool]:
        """Up to *limit* (at least 1) entries after *cookie* (0: from the start), and whether the end is
        reached.

        "." and ".." are left out. A name that exists from the first call to the last is listed exactly once,
        whatever else changes. ENOENT for a pinned directory that was removed.
        """

    @abstractmethod
    def number_above(self, handle: InodeHandle) -> int:
        """The number of the directory that this one, which has just been listed from its beginning, is in; 0 if
        the listing did not tell, or it is the root. Costs nothing."""

    @abstractmethod
    def parent(self, handle: InodeHandle) -> Node:
        """The directory that this one is in; the root of the root. ESTALE for one that was removed, or moved
        out of the export."""

    @abstractmethod
    def search(self, number: int) -> Iterator[Node | None]:
        """Walks through all names for the inode with this number, in steps of some milliseconds: None after
        each that has not found it, then the inode. Nothing more if there is none; also for one that is moved by
        somebody meanwhile, from where the walk has not been to where it has, or has no name."""

    # Attributes. Volatile until `fsync` of the inode.

    @abstractmethod
    def getattr(self, handle: InodeHandle) -> Attributes:
        """The attributes now."""

    @abstractmethod
    def setattr(self, handle: InodeHandle, changes: AttributeChanges) -> Attributes:
        """Applies owner, mode, size and times, in this order; the attributes afterwards.

        chown clears S_ISUID, and S_ISGID of a group-executable, of everything but a directory (Linux,
        `setattr_should_drop_sgid`). A mode for a symbolic link is EOPNOTSUPP, a size is EISDIR for a
        directory and EINVAL for all but regular files. When one step fails, those before it have been done.
        """

    @abstractmethod
    def get_flags(self, handle: InodeHandle, extended: bool) -> tuple[int, ...]:
        """What FS_IOC_GETFLAGS tells, or if *extended* FS_IOC_FSGETXATTR: one number, or the five of struct
        fsxattr. ENOTTY or EOPNOTSUPP where the filesystem has none, or for anything but files and directories.
        """

    @abstractmethod
    def set_flags(self, handle: InodeHandle, numbers: tuple[int, ...], extended: bool) -> Attributes:
        """Sets what `get_flags` tells; the attributes afterwards (ctime). EOPNOTSUPP for what the filesystem
        has not, and for names in which case does not matter: clients tell names apart by their bytes."""

    @abstractmethod
    def check_open(self, handle: InodeHandle, flags: int) -> None:
        """Whether the inode may be opened for writing with *flags* of open(2): EPERM if it is immutable, or
        append-only and they are not O_APPEND (may_open in fs/namei.c)."""

    @abstractmethod
    def readlink(self, handle: InodeHandle) -> bytes:
        """EINVAL if it is no symbolic link."""

    @abstractmethod
    def getxattr(self, handle: InodeHandle, name: bytes) -> bytes:
        """ENODATA, EOPNOTSUPP (the namespace is unknown here)."""

    @abstractmethod
    def setxattr(self, handle: InodeHandle, name: bytes, value: bytes, flags: int) -> Attributes:
        """*flags*: 0, os.XATTR_CREATE (EEXIST) or os.XATTR_REPLACE (ENODATA), checked atomically. The
        attributes afterwards (ctime; the mode, where an ACL is set). EPERM for user.* on anything but regular
        files and directories, ENOSPC, E2BIG, ERANGE (name), EOPNOTSUPP."""

    @abstractmethod
    def listxattr(self, handle: InodeHandle) -> list[bytes]:
        """Sorted names."""

    @abstractmethod
    def removexattr(self, handle: InodeHandle, name: bytes) -> Attributes:
        """The attributes afterwards. ENODATA, EPERM, EOPNOTSUPP."""

    @abstractmethod
    def statfs(self) -> FilesystemStatistics:
        """Of the filesystem that holds the export."""

    # Data: regular files only (EISDIR, else EINVAL), so that nothing here ever opens a FIFO or a device.
    # Offsets are 0 to OFFSET_MAX (EINVAL).

    @abstractmethod
    def pin(self, handle: InodeHandle) -> None:
        """Keeps the inode - its data and the validity of its handle - beyond its last unlink, until `unpin`
        was called as often. Pins are forgotten when the process ends, orphans are not."""

    @abstractmethod
    def unpin(self, handle: InodeHandle) -> None:
        """The last one of an unlinked inode frees its space, which takes a while if it is large. Never an
        `FsError`; one without its `pin` is a bug of the caller's (AssertionError). Volatile."""

    @abstractmethod
    def unpin_nowait(self, handle: InodeHandle) -> bool:
        """As `unpin`, if that frees no space; False, and nothing is done, if it would."""

    @abstractmethod
    def orphans(self) -> list[InodeHandle]:
        """What is kept although it has no name: now pinned, or left by a server that died. (Also inodes that
        were about to lose their last name when it did, and have it still.) Volatile when they are made, as the
        removal of the name is; a power failure never leaves an inode with neither."""

    @abstractmethod
    def sweep(self) -> None:
        """Frees every orphan that is not pinned: nobody can claim it any more. May take long (large files).
        What cannot be removed is logged, and left for the next sweep. Volatile."""

    @abstractmethod
    def read(self, handle: InodeHandle, offset: int, size: int) -> bytes:
        """Shorter than *size* bytes only at the end of the file. May wait for the disk."""

    @abstractmethod
    def read_nowait(self, handle: InodeHandle, offset: int, size: int) -> bytes | bytearray | None:
        """As `read`, but None where that would have to wait for the disk."""

    @abstractmethod
    def accessed(self, handle: InodeHandle) -> None:
        """A regular file was read by somebody: its time of the last access changes, as the filesystem is
        mounted (relatime, noatime, ...), and no other time. Neither `read` nor `read_nowait` does that, where
        the server may keep them from it (as root, or of its own files). Volatile."""

    @abstractmethod
    def write(self, handle: InodeHandle, offset: int, data: bytes | memoryview) -> Attributes:
        """Writes all of *data*; the attributes afterwards. Volatile until `fsync`. After an error (ENOSPC,
        EFBIG, ...) any part may have been written, from its start on."""

    @abstractmethod
    def fsync(self, handle: InodeHandle, datasync: bool) -> None:
        """Durable: data and attributes (with *datasync*: only those that reading the data needs) of all that
        was written before. EIO, ENOSPC, EDQUOT: a write-back failed since the last call, reported once.
        EINVAL for all but regular files and directories."""

    @abstractmethod
    def fsync_dir(self, handle: InodeHandle) -> None:
        """Durable: the names in this directory. ENOTDIR, EIO."""

    @abstractmethod
    def fallocate(self, handle: InodeHandle, mode: int, offset: int, length: int) -> Attributes:
        """fallocate(2) with its *mode* bits; the attributes afterwards. Volatile. EINVAL, EOPNOTSUPP (mode),
        ENOSPC, EFBIG."""

    @abstractmethod
    def seek(self, handle: InodeHandle, offset: int, whence: int) -> int:
        """os.SEEK_DATA or os.SEEK_HOLE (else EINVAL). ENXIO: no data from there on, or past the end."""

    @abstractmethod
    def copy_range(
        self, source: InodeHandle, source_offset: int, target: InodeHandle, target_offset: int, length: int
    ) -> int:
        """copy_file_range(2): bytes copied, perhaps fewer than *length*, 0 at the end of *source*. Volatile.
        EINVAL (overlapping ranges of one file)."""

    @abstractmethod
    def close(self) -> None:
        """Releases everything, pins too. No other method may be running, or be called afterwards. Nothing is
        made durable."""


def set_xattr(
    storage: Storage, handle: InodeHandle, name: bytes, value: bytes, flags: int, *, kill_sgid: bool
) -> Attributes:
    """`Storage.setxattr`; the attributes afterwards. *kill_sgid*: an ACL is set by somebody who is not in the
    group, which takes S_ISGID away. The server, which may do anything, would leave it."""
    attributes = storage.setxattr(handle, name, value, flags)
    if kill_sgid and name == ACL_ACCESS and attributes.mode & stat.S_ISGID:
        mode = stat.S_IMODE(attributes.mode) & ~stat.S_ISGID
        attributes = storage.setattr(handle, AttributeChanges(mode=mode))
    return attributes
