"""The journal's log as a file that is allocated in advance.

    u32 size | u32 CRC-32 of the record | record

little endian, one after the other, zeros after the last. A record is written by one pwrite(2) into space that
the file has already, so that a full disk cannot come between an operation and the record that it was done.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nfsfuse_server.state.interface import OVERHEAD, Log

log = logging.getLogger(__name__)

SIZE_MIN: Final = 4 << 20
"""Bytes of a log: some 10,000 operations, so that it is written anew every few seconds at worst, which takes
a millisecond."""

_PREFIX: Final = struct.Struct("<II")
assert _PREFIX.size == OVERHEAD


class LogFile(Log):
    """A log in the file *path*. One process at a time may have it open."""

    def __init__(self, path: Path, size_min: int = SIZE_MIN) -> None:
        self._path = path
        self._size_min = size_min
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        self._end = 0

    def read(self) -> list[bytes]:
        data = self._content()
        records = []
        at = 0
        while at + _PREFIX.size <= len(data):
            size, checksum = _PREFIX.unpack_from(data, at)
            record = data[at + _PREFIX.size : at + _PREFIX.size + size]
            if size == 0 or len(record) < size or zlib.crc32(record) != checksum:
                break
            records.append(record)
            at += _PREFIX.size + size
        self._end = at
        if any(data[at:]):
            log.warning("%s: what follows byte %d was not written whole, and is cut off", self._path, at)
            os.ftruncate(self._descriptor, at)
            self._size = at
        return records

    def _content(self) -> bytes:
        parts = []
        at = 0
        while part := os.pread(self._descriptor, self._size - at, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def append(self, record: bytes) -> None:
        data = _PREFIX.pack(len(record), zlib.crc32(record)) + record
        if self._end + len(data) > self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        written = os.pwrite(self._descriptor, data, self._end)
        assert written == len(data), "the space is allocated"
        self._end += written

    def room(self) -> int:
        return self._size - self._end

    def replace(self, records: Iterable[bytes], reserve: int) -> None:
        data = b"".join(_PREFIX.pack(len(record), zlib.crc32(record)) + record for record in records)
        size = self._size_min + len(data) + reserve
        new = self._path.with_suffix(".new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            at = 0
            while at < len(data):
                at += os.pwrite(descriptor, data[at:], at)
            new.rename(self._path)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size, self._end = descriptor, size, len(data)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)
