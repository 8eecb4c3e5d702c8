"""A kernel below the local storage in which the n-th system call from now fails."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Final

import pytest

from nfsfuse_server.storage import (
    descriptors,
    handles,
    local_attributes,
    local_base,
    local_data,
    local_listing,
    local_names,
    orphans,
    syscalls,
)

MODULES: Final = (
    descriptors, handles, local_attributes, local_base, local_data, local_listing, local_names, orphans,
)  # fmt: skip

CALLS: Final = frozenset({
    "chmod", "copy_file_range", "fdatasync", "fstatvfs", "fsync", "ftruncate", "getxattr", "link", "listxattr",
    "lseek", "mkdir", "mknod", "open", "pread", "preadv", "pwrite", "pwritev", "readlink", "removexattr",
    "rmdir", "setxattr", "symlink", "unlink",
})  # fmt: skip
"""Of the os module."""

RAW_CALLS: Final = (
    "_statx", "_name_to_handle_at", "_open_by_handle_at", "_getdents64", "_renameat2", "_fallocate",
    "_fchownat", "_utimensat",
)  # fmt: skip
"""Of `nfsfuse_server.storage.syscalls`."""


class FailingKernel:
    """What the storage's modules call, as long as *patch* lasts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._left = 0
        self._errno = 0
        self.fired = False
        for module in MODULES:
            if hasattr(module, "os"):
                patch.setattr(module, "os", _Os(self))
        for name in RAW_CALLS:
            patch.setattr(syscalls, name, self._raw(getattr(syscalls, name)))

    def arm(self, number: int, errno: int) -> None:
        """The call *number* from now, 1 the next, fails with *errno*."""
        self._left, self._errno, self.fired = number, errno, False

    def disarm(self) -> bool:
        """All calls succeed again; whether one has failed."""
        self._left = 0
        return self.fired

    def fails(self) -> int:
        """Before a call: the errno with which it fails, 0 if it does not."""
        self._left -= 1
        self.fired |= self._left == 0
        return self._errno if self._left == 0 else 0

    def _raw(self, call: Callable[..., int]) -> Callable[..., int]:
        def failing(*args: Any) -> int:
            if number := self.fails():
                ctypes.set_errno(number)
                return -1
            return call(*args)

        return failing


class _Os:
    """The os module, with calls that may fail."""

    def __init__(self, kernel: FailingKernel) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        what = getattr(os, name)
        if name not in CALLS:
            return what
        kernel = self._kernel

        def failing(*args: Any, **kwargs: Any) -> Any:
            if number := kernel.fails():
                raise OSError(number, os.strerror(number))
            return what(*args, **kwargs)

        return failing
