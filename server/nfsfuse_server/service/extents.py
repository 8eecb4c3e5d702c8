"""The extents of a write-back: whether they are such, which pages they have, and how they are written."""

from __future__ import annotations

import errno
from itertools import pairwise

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.limits import EXTENTS_PER_WRITE_MAX, PAYLOAD_SIZE_MAX
from nfsfuse.protocol.pages import pages_of
from nfsfuse.protocol.types import Attributes, Extent
from nfsfuse_server.storage.interface import Storage


def check_extents(extents: tuple[Extent, ...], size: int) -> None:
    """EINVAL unless *extents* are disjoint, ascending, and have *size* bytes."""
    if not 0 < len(extents) <= EXTENTS_PER_WRITE_MAX or not 0 < size <= PAYLOAD_SIZE_MAX:
        raise FsError(errno.EINVAL, f"write of {size} bytes in {len(extents)} extents")
    if extents[0].offset < 0 or any(extent.size <= 0 for extent in extents):
        raise FsError(errno.EINVAL, "no such extent")
    if any(one.offset + one.size > other.offset for one, other in pairwise(extents)):
        raise FsError(errno.EINVAL, "the extents are not disjoint and ascending")
    if sum(extent.size for extent in extents) != size:
        raise FsError(errno.EINVAL, f"the extents do not have {size} bytes")


def pages_of_extents(extents: tuple[Extent, ...]) -> tuple[Interval, ...]:
    """The pages of *extents*, disjoint and ascending: two extents may share one."""
    ranges: list[Interval] = []
    for extent in extents:
        start, end = pages_of(extent.offset, extent.size)
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return tuple(ranges)


def write_all(storage: Storage, request: m.WriteExtents, data: memoryview) -> Attributes:
    """Write *data*, that of all extents of *request* in order; the attributes afterwards. Raises FsError."""
    at = 0
    for extent in request.extents:
        attributes = storage.write(request.handle, extent.offset, data[at : at + extent.size])
        at += extent.size
    return attributes
