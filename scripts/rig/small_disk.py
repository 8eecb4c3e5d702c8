"""A small disk for an export, which can be filled and freed again: a tmpfs, so it needs root."""

from __future__ import annotations

import ctypes
import os

from scripts.rig.rig import Rig


class SmallDisk:
    """*size* bytes, of which *export* is a directory. Goes with the rig."""

    def __init__(self, rig: Rig, size: int) -> None:
        self.directory = rig.directory / f"disk-{rig.count()}"
        self.directory.mkdir()
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={size}".encode()
        if libc.mount(b"nfsfuse-rig", os.fsencode(self.directory), b"tmpfs", 0, options) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(self.directory))
        self.export = self.directory / "export"
        self.export.mkdir()
        self._ballast = self.directory / "ballast"

    def free_bytes(self) -> int:
        """How much room there is."""
        found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but *leave* bytes."""
        with self._ballast.open("ab") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, ballast.tell() + self.free_bytes() - leave)

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)
