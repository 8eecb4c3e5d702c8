"""The two families of errors.

`FsError` is what an application on a client should see: an errno, as open(2), rename(2) and the rest
document it. Everything else that goes wrong is a bug, ours or the peer's: `ProtocolError` is the peer's (it
ends that one session), an `AssertionError` out of a machine is ours.

Library exceptions are translated where the library is called (``raise FsError(...) from exc``), so that no
layer above has to know which library it was.
"""

from __future__ import annotations

import errno as _errno
import os


class FsError(Exception):
    """An operation failed in a way its caller must be told: *errno* is a positive value of `errno`."""

    def __init__(self, errno: int, detail: str = "") -> None:
        super().__init__(errno, detail)
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        text = f"{name}: {os.strerror(self.errno)}"
        return f"{text} ({self.detail})" if self.detail else text

    def alone(self) -> FsError:
        """The same error without its traceback: to be kept, or to be raised by someone who has kept it. With it
        all that was in use where it was raised would be kept: descriptors, and the data of a write."""
        return FsError(self.errno, self.detail)

    @classmethod
    def from_os(cls, exc: OSError) -> FsError:
        """The same error as *exc*, which a system call raised; EIO if it carries no errno."""
        return cls(exc.errno if exc.errno else _errno.EIO, str(exc.strerror or exc))


class ProtocolError(Exception):
    """The peer sent what no correct peer sends. Its session is ended, nothing else:
    over another connection it would be sent again."""
