"""A directory of the server's own filesystem as storage: the default.

The pieces: names (local_names.py), attributes (local_attributes.py), data (local_data.py), listings
(local_listing.py), searches by number (local_search.py), over handles (handles.py) and open descriptors
(descriptors.py).

A client never reaches outside the exported directory: handles are signed or numbered, names are single
components, no symbolic link is ever followed, no mount crossed, and only regular files and directories are
ever opened.

As root, what is created belongs to the client's user; otherwise everything belongs to the server's user, and
changing an owner is EPERM.
"""

from __future__ import annotations

import os

from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.storage.handles import PersistentLocator
from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local_attributes import LocalAttributes
from nfsfuse_server.storage.local_data import LocalData
from nfsfuse_server.storage.local_listing import LocalListing
from nfsfuse_server.storage.local_names import LocalNames
from nfsfuse_server.storage.local_search import LocalSearch


class LocalStorage(LocalNames, LocalListing, LocalSearch, LocalAttributes, LocalData, Storage):
    """Exports *path*, handles signed with *secret* (`handles.load_or_create_secret`).

    *secret* None chooses volatile handles: for a server without CAP_DAC_READ_SEARCH, or a filesystem without
    handles; clients' handles die with this object. *descriptors_max* bounds the descriptors kept open besides
    those of pinned inodes (default: RLIMIT_NOFILE less a reserve, at most 16384). Sets the process's umask to
    0 and its RLIMIT_NOFILE to the hard limit.

    `StorageError` if the directory cannot be exported this way.
    """

    def __init__(
        self, path: str | os.PathLike[str], secret: bytes | None, *, descriptors_max: int | None = None
    ) -> None:
        super().__init__(path, secret, descriptors_max)

    def handle_of(self, raw: bytes) -> InodeHandle:
        """The handle of the inode that the kernel calls *raw* (name_to_handle_at(2): type and handle), to be
        compared with what clients hold, and never given to them: it may be outside the export. Persistent
        handles only (AssertionError)."""
        assert isinstance(self._locator, PersistentLocator)
        return self._locator.handle_of(raw)
