"""The one place where exceptions become errnos, and where a handler can be interrupted.

An exception that leaves a pyfuse3 handler ends the mount, and with it every program that waits in it: so none
does. What an application should see is told to it; anything else is a bug of ours, logged, and an EIO.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps
from types import EllipsisType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from nfsfuse.fuse.binding.libraries import Request, pyfuse3
from nfsfuse.fuse.upcalls.interrupt import interruptible
from nfsfuse.protocol.errors import FsError

log = logging.getLogger(__name__)

UPCALLS: Final[Counter[str]] = Counter()
"""Requests of the kernel so far, by operation. Of this process's one mount, as INTERRUPTS."""

Answer = bytes | bytearray | memoryview | int
"""To a request of the kernel's: what follows the header of a success, or an errno."""

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def translated(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Out of *method* comes only FUSEError, and trio's cancellation."""

    name = method.__name__

    @wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        UPCALLS[name] += 1
        try:
            return await method(*args, **kwargs)
        except FsError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s failed unexpectedly", method.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded


QuickAnswer = Answer | EllipsisType | None
"""What a request has where it is read: its answer; `_supplement.LATER`, if it will be answered; None, if others
are to deal with it."""


def at_once(
    method: Callable[[S, Request, memoryview], QuickAnswer],
) -> Callable[[S, Request, memoryview], QuickAnswer]:
    """*method* deals with a request where it is read, or does not: `translated` for what never waits. The
    errno is the answer then."""
    name = method.__name__

    @wraps(method)
    def guarded(self: S, request: Request, body: memoryview) -> QuickAnswer:
        answer: QuickAnswer
        try:
            answer = method(self, request, body)
        except FsError as exc:
            answer = exc.errno
        except Exception:
            log.exception("%s failed unexpectedly", name)
            answer = errno.EIO
        if answer is not None:
            UPCALLS[name] += 1
        return answer

    return guarded


def handler(
    method: Callable[Concatenate[S, Request, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make *method* a pyfuse3 handler: it is told the facts of its request, its program can be killed while
    it waits, and only FUSEError comes out."""
    return interruptible(translated(method))
