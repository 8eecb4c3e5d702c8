"""When reading a file changes the time of its last access: a pure function.

Linux's FUSE leaves that to the daemon (S_NOATIME in `fuse_iget`). A mount does as mount(8) says: *relatime*,
which is the default, changes it if it is not later than the last change of the file, or a day old;
*strictatime* always; *noatime* never. The server's filesystem does the same once more with each read that it
sees, by its own options: what it does not keep is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from nfsfuse.protocol.types import Attributes

DAY_NS: Final = 24 * 60 * 60 * 10**9
"""Nanoseconds: relatime_need_update in fs/inode.c."""


class AccessTimes(Enum):
    """What a mount does about them."""

    NONE = "noatime"
    RELATIVE = "relatime"
    STRICT = "strictatime"


def access_times(options: Iterable[str]) -> AccessTimes:
    """What a mount does with these of mount(8)'s *options*, of which the last counts."""
    result = AccessTimes.RELATIVE
    for option in options:
        match option:
            case "noatime" | "ro":
                return AccessTimes.NONE
            case "strictatime":
                result = AccessTimes.STRICT
            case "relatime":
                result = AccessTimes.RELATIVE
    return result


def after_access(kept: AccessTimes, attributes: Attributes, now_ns: int) -> int | None:
    """The time of the last access, if a read at *now_ns*, by this machine's clock, changes it. It is later than
    any change of the file then, whatever the server's clock says: else each read would change it again."""
    changed_ns = max(attributes.mtime_ns, attributes.ctime_ns)
    accessed_ns = attributes.atime_ns
    if kept is AccessTimes.NONE:
        return None
    if kept is AccessTimes.RELATIVE and accessed_ns > changed_ns and now_ns - accessed_ns < DAY_NS:
        return None
    return max(now_ns, changed_ns + 1)
