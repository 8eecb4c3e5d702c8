"""The bytes of a local directory's files."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import OFFSET_MAX, Attributes, InodeHandle
from nfsfuse_server.storage import syscalls
from nfsfuse_server.storage.checks import check_read, check_write
from nfsfuse_server.storage.descriptors import Descriptor, OpenInode, by_proc
from nfsfuse_server.storage.local_base import LocalBase, translated
from nfsfuse_server.storage.syscalls import attributes_of


class LocalData(LocalBase):
    """The methods of `Storage` that deal in data. Descriptors are held in local variables: see
    descriptors.py."""

    def pin(self, handle: InodeHandle) -> None:
        self._pin(handle)

    @translated
    def _pin(self, handle: InodeHandle) -> None:
        with self._link_lock(handle):
            self._cache.pin(self._inode(handle))

    def unpin(self, handle: InodeHandle) -> None:
        with self._link_lock(handle):
            if self._cache.pinned(handle) == 1:
                self._orphans.discard(handle)
            freed = self._cache.unpin(handle, freeing=True)
        del freed  # which may take long: under no lock

    def unpin_nowait(self, handle: InodeHandle) -> bool:
        with self._link_lock(handle):
            if self._cache.pinned(handle) == 1 and handle in self._orphans:
                return False
            return self._cache.unpin(handle, freeing=False) is None

    def orphans(self) -> list[InodeHandle]:
        return self._orphans.handles()

    @translated
    def sweep(self) -> None:
        self._orphans.sweep(self._link_lock, self._is_pinned)

    def _is_pinned(self, handle: InodeHandle) -> bool:
        return self._cache.pinned(handle) > 0

    @translated
    def read(self, handle: InodeHandle, offset: int, size: int) -> bytes:
        check_read(offset, size)
        inode = self._inode(handle)
        file = self._reader(inode)
        data = os.pread(file.number, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]  # short: the end, or one call's limit (MAX_RW_COUNT, 2 GiB)
        done = len(data)
        while done < size and (data := os.pread(file.number, size - done, offset + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    @translated
    def read_nowait(self, handle: InodeHandle, offset: int, size: int) -> bytes | bytearray | None:
        check_read(offset, size)
        inode = self._inode(handle)
        file = self._reader(inode)
        buffer = bytearray(size)
        try:
            done = os.preadv(file.number, [buffer], offset, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in (
                errno.EAGAIN,
                errno.EOPNOTSUPP,
            ):  # not in memory; or a filesystem that cannot tell
                return None
            raise
        if done == size:
            return buffer
        if offset + done < attributes_of(file.number).size:
            return None  # the rest is on the disk
        del buffer[done:]
        return buffer

    @translated
    def accessed(self, handle: InodeHandle) -> None:
        inode = self._inode(handle)
        number = self._reader(inode).number
        # The kernel decides, by how the filesystem is mounted, when a byte is read: utimensat(2) would not ask,
        # and change the ctime. Should another thread read just now, that counts as well.
        with self._lock(inode):
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
            fcntl.fcntl(number, fcntl.F_SETFL, flags & ~os.O_NOATIME)
            try:
                os.preadv(number, [bytearray(1)], 0, os.RWF_NOWAIT)
            except OSError as exc:
                if exc.errno == errno.EOPNOTSUPP:
                    os.pread(number, 1, 0)
                elif exc.errno != errno.EAGAIN:  # it is not in memory, which is no matter (filemap_read)
                    raise
            finally:
                fcntl.fcntl(number, fcntl.F_SETFL, flags)

    @translated
    def write(self, handle: InodeHandle, offset: int, data: bytes | memoryview) -> Attributes:
        size = len(data) if isinstance(data, bytes) else data.nbytes
        check_write(offset, size)
        inode = self._inode(handle)
        try:
            file = self._writer(inode)
        except PermissionError:
            return self._add_at_end(inode, offset, data)
        done = os.pwrite(file.number, data, offset) if size else 0
        if done < size:
            rest = memoryview(data).cast("B")
            while done < size:
                done += os.pwrite(file.number, rest[done:], offset + done)
        return self._told(inode, file)

    def _add_at_end(self, inode: OpenInode, offset: int, data: bytes | memoryview) -> Attributes:
        """A write to a file that the server's kernel opens for appending only. EPERM unless it is one: anywhere
        but at the end, or if the file is immutable."""
        file = Descriptor(os.open(by_proc(inode.path), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
        rest = memoryview(data).cast("B")
        with self._lock(inode):
            if attributes_of(file.number).size != offset:
                raise FsError(errno.EPERM, "append-only")
            while rest:
                rest = rest[os.write(file.number, rest) :]
        return self._told(inode, file)

    @translated
    def fsync(self, handle: InodeHandle, datasync: bool) -> None:
        inode = self._inode(handle)
        file = self._lister(inode) if inode.kind == stat.S_IFDIR else self._reader(inode)
        if datasync:
            os.fdatasync(file.number)
        else:
            os.fsync(file.number)

    @translated
    def fsync_dir(self, handle: InodeHandle) -> None:
        inode = self._directory(handle)
        file = self._lister(inode)
        os.fsync(file.number)

    @translated
    def fallocate(self, handle: InodeHandle, mode: int, offset: int, length: int) -> Attributes:
        if not 0 <= offset <= OFFSET_MAX or not 0 < length <= OFFSET_MAX or mode != mode & 0xFF:
            raise FsError(errno.EINVAL, "fallocate")
        inode = self._inode(handle)
        file = self._writer(inode)
        syscalls.fallocate(file.number, mode, offset, length)
        return self._told(inode, file)

    @translated
    def seek(self, handle: InodeHandle, offset: int, whence: int) -> int:
        check_read(offset, 0)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL, "seek")
        inode = self._inode(handle)
        file = self._reader(inode)
        return os.lseek(file.number, offset, whence)  # the position itself is nobody's

    @translated
    def copy_range(
        self, source: InodeHandle, source_offset: int, target: InodeHandle, target_offset: int, length: int
    ) -> int:
        check_read(source_offset, length)
        check_write(target_offset, length)
        from_inode, to_inode = self._inode(source), self._inode(target)
        from_file, to_file = self._reader(from_inode), self._writer(to_inode)
        return os.copy_file_range(from_file.number, to_file.number, length, source_offset, target_offset)
