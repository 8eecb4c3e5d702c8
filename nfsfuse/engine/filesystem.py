"""The client's filesystem, whole: names, directories and files over one session."""

from __future__ import annotations

from nfsfuse.engine.directories import Directories
from nfsfuse.engine.files import Files
from nfsfuse.engine.names import Names
from nfsfuse.machines.inodes import InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol.types import Node


class Filesystem:
    """What a mount is made of. Knows nothing of FUSE."""

    def __init__(self, remote: Remote, root: Node) -> None:
        self.inodes = InodeTable(root)
        self.names = Names(remote, self.inodes)
        self.directories = Directories(remote, self.inodes)
        self.files = Files(remote, self.inodes, self.names)
