"""What requests are answered with, and callbacks: see `messages`, which has all of it."""

from __future__ import annotations

from typing import Final

from nfsfuse.protocol.codes import Message, message
from nfsfuse.protocol.locks import HeldLock, OwnedLock
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import (
    OFFSET_MAX,
    Attributes,
    DirEntry,
    Epoch,
    FilesystemStatistics,
    Node,
    OpenId,
    SessionId,
)


@message(40)
class Done(Message):
    """It is done. *affected* are the inodes whose attributes it changed, as they are afterwards."""

    affected: tuple[Node, ...] = ()
    tokens: tuple[Token, ...] = ()


@message(41)
class Welcome(Message):
    """Answers `Hello`. The session lives as long as the client is heard of within *lease_ms* milliseconds.
    *resumed*: it is the one asked for, of whose frames the server has *frames_received*. If not, but the id is
    the one asked for, the session is known from the last epoch and may be reclaimed (`Reclaim`): its frames are
    counted anew. Otherwise it is a new one. *rebooted*: the server's machine was started since the last epoch,
    so what was not fsynced may be lost. Of the server's filesystem: *file_size_max*, in bytes, and whether it
    *keeps_access_times*."""

    session_id: SessionId
    epoch: Epoch
    resumed: bool
    frames_received: int
    rebooted: bool
    lease_ms: int
    server_version: str
    root: Node
    file_size_max: int = OFFSET_MAX
    keeps_access_times: bool = False


@message(42)
class Entry(Message):
    """An inode that was looked up or made; None: there is none of that name (that, too, may be cached under
    the token). *affected* as in `Done`. *empty*: it is a directory without names, and *tokens* cover all.
    *content*: the payload is all of the file, and *tokens* cover it."""

    node: Node | None
    tokens: tuple[Token, ...]
    affected: tuple[Node, ...] = ()
    empty: bool = False
    content: bool = False


@message(43)
class Stat(Message):
    """An inode's attributes after the operation. *bare* as in `Node`."""

    attributes: Attributes
    tokens: tuple[Token, ...]
    bare: bool = False


@message(44)
class Opened(Message):
    """An open file. It pins the inode: unlinked, it stays readable and writable until `Release`.
    If *content*, the payload is all of the file. *affected* as in `Done`, *watched* as in `Watched`."""

    open_id: OpenId
    node: Node
    tokens: tuple[Token, ...]
    content: bool
    affected: tuple[Node, ...] = ()
    watched: bool = False


@message(45)
class Data(Message):
    """The payload is the file data; less than was asked for means the end of the file, and then *attributes*
    say where that is."""

    tokens: tuple[Token, ...]
    attributes: Attributes | None


@message(46)
class Written(Message):
    """The server's kernel has the data. If `Write.sync` asked for it, so has its disk, or *sync_errno* is the
    errno with which the sync failed, as an `Fsync` after the write would have (0: it did not). That is no
    failure of the write: the data are not to be written again, as if the server had refused them."""

    attributes: Attributes
    sync_errno: int = 0


@message(47)
class Target(Message):
    """What a symbolic link contains."""

    target: bytes


@message(71)
class Listing(Message):
    """Some entries of a directory, without ``.`` and ``..``. With every node comes a SHARED token for its
    attributes (not spelled out: a listing would be twice as long). *above*: the number of the directory that it
    is in, 0 if that is not known (or it is the root)."""

    entries: tuple[DirEntry, ...]
    end: bool
    tokens: tuple[Token, ...]
    above: int = 0


@message(49)
class Statistics(Message):
    """Answers `StatFs`."""

    statistics: FilesystemStatistics


@message(50)
class Value(Message):
    """The payload is an extended attribute's value."""


@message(51)
class Names(Message):
    """An inode's extended attributes' names."""

    names: tuple[bytes, ...]


@message(52)
class Position(Message):
    """An offset, or a number of bytes done."""

    offset: int


@message(64)
class InodeFlags(Message):
    """Answers `GetInodeFlags`."""

    numbers: tuple[int, ...]


@message(53)
class TokenGrant(Message):
    """Answers `GetToken`. *attributes* are given with a token for them, *watched* as in `Watched`, *bare* as in
    `Node`."""

    tokens: tuple[Token, ...]
    attributes: Attributes | None
    watched: bool = False
    bare: bool = False


@message(63)
class Watched(Message):
    """Answers `Grown`: all who have the file open know. *watched*: others have it open. Without, that stays so
    for as long as the client holds the attributes EXCLUSIVE: whoever opens the file takes a token for them."""

    watched: bool


@message(54)
class Recalled(Message):
    """The client has given up what was recalled, and of everything in *returned* all beyond its mode."""

    returned: tuple[Token, ...]


@message(56)
class Reclaimed(Message):
    """Answers `Reclaim`: what of it is refused, and so not held any more."""

    tokens: tuple[Token, ...]
    open_files: tuple[OpenId, ...]
    locks: tuple[OwnedLock, ...]


@message(55)
class LockFound(Message):
    """Answers `GetLock`: a lock in the way, None if there is none."""

    lock: HeldLock | None


REPLIES: Final[tuple[type[Message], ...]] = (
    Done, Welcome, Entry, Stat, Opened, Data, Written, Target, Listing, Statistics, Value, Names, Position,
    TokenGrant, Recalled, LockFound, Reclaimed, Watched, InodeFlags,
)  # fmt: skip
