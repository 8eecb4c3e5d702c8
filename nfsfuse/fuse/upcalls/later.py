"""Requests that are answered where what they wait for arrives, without a task that waits.

A page that another client has is asked for by a FUSE_READ, which waits for the server's answer. A worker of
pyfuse3's, a cancel scope and a task that is woken for it cost more than the answer itself.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from nfsfuse.engine.reading import ReadData
from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.libraries import Request
from nfsfuse.fuse.upcalls.boundary import Answer
from nfsfuse.fuse.upcalls.interrupt import Interrupts
from nfsfuse.protocol.errors import FsError

log = logging.getLogger(__name__)

GONE = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""What the kernel says of an answer that nobody wants any more: ENOENT, the connection was aborted and the
request is gone with it; ENODEV, EPERM: unmounted."""


class Replies:
    """Answers written to the FUSE device past libfuse. *device* is set once there is one, and -1 afterwards."""

    def __init__(self) -> None:
        self.device = -1

    def send(self, request: Request, answer: Answer) -> None:
        """Answer *request*. An answer that the kernel refuses is a bug of ours: logged, and its program told
        EIO, as it would wait for ever."""
        refused = self._write(request.unique, answer)
        if refused not in (0, *GONE):
            log.error("the reply to %r was refused: %s", request, os.strerror(refused))
            self._write(request.unique, errno.EIO)

    def _write(self, unique: int, answer: Answer) -> int:
        try:
            if isinstance(answer, int):
                os.write(self.device, abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -answer, unique))
            else:
                header = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(answer), 0, unique)
                os.writev(self.device, (header, answer))
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0


class Waiter:
    """A request that waits, until `answered` is called, or an interrupt was faster."""

    __slots__ = ("_give_up", "_interrupts", "_over", "_replies", "_request")

    def __init__(self, request: Request, replies: Replies, interrupts: Interrupts) -> None:
        self._request = request
        self._replies = replies
        self._interrupts = interrupts
        self._over = False
        self._give_up: Callable[[], None] | None = None

    def answered(self, result: ReadData | Exception) -> None:
        """What it waited for has come to *result*. As `boundary.translated`: only a bug is no FsError."""
        answer: Answer
        if isinstance(result, FsError):
            answer = result.errno
        elif isinstance(result, Exception):
            log.error("%r failed unexpectedly", self._request, exc_info=result)
            answer = errno.EIO
        else:
            answer = result
        self._answer(answer)

    def waits(self, give_up: Callable[[], None]) -> None:
        """It has begun to wait, if it is not answered yet, until *give_up* is called. From now on it can be
        killed."""
        if not self._over:
            self._give_up = give_up
            self._interrupts.enlist(self._request.unique, self._request.pid, self)

    def cancel(self) -> None:
        """It is interrupted: see `Interrupts`."""
        assert self._give_up is not None
        self._give_up()
        self._answer(self._interrupts.errno)

    def _answer(self, answer: Answer) -> None:
        assert not self._over, "answered twice"
        self._over = True
        if self._give_up is not None:
            self._give_up = None
            self._interrupts.forget(self._request.unique)
        self._replies.send(self._request, answer)
