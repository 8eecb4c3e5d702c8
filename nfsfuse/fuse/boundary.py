"""The one place where exceptions become errnos.

An exception that leaves a pyfuse3 handler ends the mount, and with it every program that waits in it: so none
does. What an application should see is told to it; anything else is a bug of ours, logged, and an EIO.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from nfsfuse.protocol.errors import FsError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def handler(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make *method* a handler out of which only FUSEError comes."""

    @wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
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
