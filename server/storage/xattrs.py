"""Setting extended attributes as a request asks for it."""

from __future__ import annotations

import stat

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import ACL_ACCESS, AttributeChanges, Attributes
from server.storage.interface import Storage


def set_xattr(storage: Storage, request: m.SetXattr, value: bytes, flags: int) -> Attributes:
    """`Storage.setxattr`; the attributes afterwards. An ACL that is set by somebody who is not in the group
    takes S_ISGID away: the server, which may do anything, would keep it."""
    attributes = storage.setxattr(request.handle, request.name, value, flags)
    if request.kill_sgid and request.name == ACL_ACCESS and attributes.mode & stat.S_ISGID:
        mode = stat.S_IMODE(attributes.mode) & ~stat.S_ISGID
        attributes = storage.setattr(request.handle, AttributeChanges(mode=mode))
    return attributes
