"""Every message of the wire, one frozen dataclass each, and the table of their codes.

A request names the type of its reply (`Request[R]`), so a call is typed end to end. Either side may ask:
`CLIENT_REQUESTS` go from client to server, `SERVER_REQUESTS` are the callbacks. A message that carries file
data carries it in the frame's payload, never in a field; its docstring says so.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from nfsfuse.protocol.locks import HeldLock, LockKind, LockMode, OwnedLock
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import Token, TokenMode
from nfsfuse.protocol.types import (
    AttributeChanges,
    Attributes,
    ClientId,
    Credentials,
    DirEntry,
    Epoch,
    FilesystemStatistics,
    InodeHandle,
    LockOwner,
    Node,
    OpenFile,
    OpenId,
    RequestId,
    SessionId,
    Sync,
)


class Message:
    """Anything that is sent."""

    __slots__ = ()


R_co = TypeVar("R_co", bound=Message, covariant=True)


class Request(Message, Generic[R_co]):
    """A message that is answered by an ``R`` or by an errno."""

    __slots__ = ()


# --- replies ---------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Done(Message):
    """It is done. *affected* are the inodes whose attributes it changed, as they are afterwards."""

    affected: tuple[Node, ...] = ()
    tokens: tuple[Token, ...] = ()


@record(frozen=True, slots=True)
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
    file_size_max: int
    keeps_access_times: bool


@record(frozen=True, slots=True)
class Entry(Message):
    """An inode that was looked up or made; None: there is none of that name (that, too, may be cached under
    the token). *affected* as in `Done`. *empty*: it is a directory without names, and *tokens* cover all.
    *content*: the payload is all of the file, and *tokens* cover it."""

    node: Node | None
    tokens: tuple[Token, ...]
    affected: tuple[Node, ...] = ()
    empty: bool = False
    content: bool = False


@record(frozen=True, slots=True)
class Stat(Message):
    """An inode's attributes after the operation."""

    attributes: Attributes
    tokens: tuple[Token, ...]


@record(frozen=True, slots=True)
class Opened(Message):
    """An open file. It pins the inode: unlinked, it stays readable and writable until `Release`.
    If *content*, the payload is all of the file. *affected* as in `Done`."""

    open_id: OpenId
    node: Node
    tokens: tuple[Token, ...]
    content: bool
    affected: tuple[Node, ...] = ()


@record(frozen=True, slots=True)
class Data(Message):
    """The payload is the file data; less than was asked for means the end of the file, and then *attributes*
    say where that is."""

    tokens: tuple[Token, ...]
    attributes: Attributes | None


@record(frozen=True, slots=True)
class Written(Message):
    """The server's kernel has the data. If `Write.sync` asked for it, so has its disk, or *sync_errno* is the
    errno with which the sync failed, as an `Fsync` after the write would have (0: it did not). That is no
    failure of the write: the data are not to be written again, as if the server had refused them."""

    attributes: Attributes
    sync_errno: int = 0


@record(frozen=True, slots=True)
class Target(Message):
    """What a symbolic link contains."""

    target: bytes


@record(frozen=True, slots=True)
class Listing(Message):
    """Some entries of a directory, without ``.`` and ``..``. With every node comes a SHARED token for its
    attributes (not spelled out: a listing would be twice as long)."""

    entries: tuple[DirEntry, ...]
    end: bool
    tokens: tuple[Token, ...]


@record(frozen=True, slots=True)
class Statistics(Message):
    """Answers `StatFs`."""

    statistics: FilesystemStatistics


@record(frozen=True, slots=True)
class Value(Message):
    """The payload is an extended attribute's value."""


@record(frozen=True, slots=True)
class Names(Message):
    """An inode's extended attributes' names."""

    names: tuple[bytes, ...]


@record(frozen=True, slots=True)
class Position(Message):
    """An offset, or a number of bytes done."""

    offset: int


@record(frozen=True, slots=True)
class TokenGrant(Message):
    """Answers `GetToken`. *attributes* are given with a token for them."""

    tokens: tuple[Token, ...]
    attributes: Attributes | None


@record(frozen=True, slots=True)
class Recalled(Message):
    """The client has given up what was recalled, and of everything in *returned* all beyond its mode."""

    returned: tuple[Token, ...]


@record(frozen=True, slots=True)
class Reclaimed(Message):
    """Answers `Reclaim`: what of it is refused, and so not held any more."""

    tokens: tuple[Token, ...]
    open_files: tuple[OpenId, ...]
    locks: tuple[OwnedLock, ...]


@record(frozen=True, slots=True)
class LockFound(Message):
    """Answers `GetLock`: a lock in the way, None if there is none."""

    lock: HeldLock | None


# --- session ---------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Hello(Request[Welcome]):
    """Begins a connection, before the numbered frames of the session (`nfsfuse.rpc.greeting`). *session_id* is
    empty for a new session, else the one to resume, which belongs to *epoch* and of whose frames the client has
    *frames_received*. *replaces*, unless empty, is the session of a daemon that is known to be dead: it ends at
    once rather than with its lease."""

    version: int
    client_id: ClientId
    session_id: SessionId
    epoch: Epoch
    frames_received: int
    replaces: SessionId
    client_name: str
    features: tuple[str, ...]


@record(frozen=True, slots=True)
class Heartbeat(Request[Done]):
    """Keeps the lease alive, and tells whether the connection is."""


@record(frozen=True, slots=True)
class Goodbye(Request[Done]):
    """Ends the session: everything it holds is released now rather than after the lease."""


@record(frozen=True, slots=True)
class Cancel(Request[Done]):
    """Give up on *request*, if it is still waiting: it is then answered EINTR. An interrupted program's."""

    request: RequestId


# --- names and attributes --------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Lookup(Request[Entry]):
    """Find *name* in *parent*. *content*: if it is a small file and nobody is in the way, what is in it is told
    too, as the file is likely to be opened next. ENOENT, ENOTDIR, EXDEV (another filesystem is mounted there).
    """

    parent: InodeHandle
    name: bytes
    content: bool = False


@record(frozen=True, slots=True)
class GetAttr(Request[Stat]):
    """stat(2). ESTALE if the inode is gone."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class SetAttr(Request[Stat]):
    """chmod, chown, truncate, utimensat.

    *blocks_write_back*: until a change of the size is answered, the client's kernel writes no page of the file
    back (fuse_set_nowrite), and there may be dirty ones: a recall of those waits for this request. So it does
    not queue behind whoever the recall is for. EINTR: it waits itself for a client in the same position."""

    handle: InodeHandle
    changes: AttributeChanges
    blocks_write_back: bool = False


@record(frozen=True, slots=True)
class ReadLink(Request[Target]):
    """readlink(2)."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class SymLink(Request[Entry]):
    """symlink(2)."""

    parent: InodeHandle
    name: bytes
    target: bytes
    credentials: Credentials


@record(frozen=True, slots=True)
class MkNod(Request[Entry]):
    """mknod(2); *mode* has the type."""

    parent: InodeHandle
    name: bytes
    mode: int
    rdev: int
    credentials: Credentials


@record(frozen=True, slots=True)
class MkDir(Request[Entry]):
    """mkdir(2)."""

    parent: InodeHandle
    name: bytes
    mode: int
    credentials: Credentials


@record(frozen=True, slots=True)
class Link(Request[Entry]):
    """link(2)."""

    handle: InodeHandle
    parent: InodeHandle
    name: bytes


@record(frozen=True, slots=True)
class Unlink(Request[Done]):
    """unlink(2)."""

    parent: InodeHandle
    name: bytes


@record(frozen=True, slots=True)
class RmDir(Request[Done]):
    """rmdir(2)."""

    parent: InodeHandle
    name: bytes


@record(frozen=True, slots=True)
class Rename(Request[Done]):
    """renameat2(2); *flags* is 0, RENAME_NOREPLACE or RENAME_EXCHANGE."""

    parent: InodeHandle
    name: bytes
    new_parent: InodeHandle
    new_name: bytes
    flags: int


@record(frozen=True, slots=True)
class ReadDir(Request[Listing]):
    """The entries after *cookie* (0: from the start), at most *limit* of them."""

    handle: InodeHandle
    cookie: int
    limit: int


@record(frozen=True, slots=True)
class StatFs(Request[Statistics]):
    """statvfs(3) of the export."""


@record(frozen=True, slots=True)
class GetXattr(Request[Value]):
    """getxattr(2)."""

    handle: InodeHandle
    name: bytes


@record(frozen=True, slots=True)
class SetXattr(Request[Stat]):
    """setxattr(2) with XATTR_CREATE or XATTR_REPLACE in *flags*. The payload is the value."""

    handle: InodeHandle
    name: bytes
    flags: int


@record(frozen=True, slots=True)
class ListXattr(Request[Names]):
    """listxattr(2)."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class RemoveXattr(Request[Stat]):
    """removexattr(2)."""

    handle: InodeHandle
    name: bytes


# --- open files and data ---------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Open(Request[Opened]):
    """Open a regular file. *flags* as of open(2): the access mode and O_TRUNC are heeded. Tokens for
    data are granted as far as nobody has to be asked for them. Without *want* nothing is granted, nobody is
    waited for, and the attributes in the reply are not to be believed: it is only to pin the inode."""

    handle: InodeHandle
    flags: int
    want: bool


@record(frozen=True, slots=True)
class Create(Request[Opened]):
    """open(2) with O_CREAT: makes *name* if it is not there (or fails with EEXIST under O_EXCL), and opens
    it; atomic, for all clients together."""

    parent: InodeHandle
    name: bytes
    mode: int
    flags: int
    credentials: Credentials


@record(frozen=True, slots=True)
class Closed:
    """The last close of an open file. With it the client gave up what of *tokens* exceeds their mode, when it
    had received *frames_received* frames; see `ReturnTokens`."""

    open_id: OpenId
    tokens: tuple[Token, ...] = ()
    frames_received: int = 0


@record(frozen=True, slots=True)
class Release(Request[Done]):
    """The last closes of at most RELEASES_MAX open files, in their order, and what was given up with each.
    EBADF if one was not open; all others are released all the same."""

    closed: tuple[Closed, ...]


@record(frozen=True, slots=True)
class Accessed(Request[Done]):
    """Programs have read at most ACCESSES_MAX regular files (and each of them is told once for many reads):
    their times of the last access change, as far as the server's filesystem keeps these (relatime of
    mount(8)). No `Read` does that by itself, as not everything that is read ahead is ever looked at. A file
    that is gone does not matter."""

    handles: tuple[InodeHandle, ...]


@record(frozen=True, slots=True)
class Read(Request[Data]):
    """pread(2) of at most PAYLOAD_SIZE_MAX bytes, page-aligned, together with a token of *mode* for them.
    NONE: the client holds one already; EAGAIN if it does not, any more."""

    handle: InodeHandle
    offset: int
    size: int
    mode: TokenMode


@record(frozen=True, slots=True)
class Write(Request[Written]):
    """Write-back: pwrite(2) of the payload at *offset*, under an EXCLUSIVE token; EAGAIN without one. It
    never waits for another client, as recalls are acknowledged only after it (K6).

    *sync*: with the `Fsync` that would follow, of all of the file, in one round trip. Answered when both are
    done."""

    handle: InodeHandle
    offset: int
    sync: Sync = Sync.NONE


@record(frozen=True, slots=True)
class Fsync(Request[Done]):
    """fsync(2), or fdatasync(2) if *data_only*, of a file or directory on the server's disk."""

    handle: InodeHandle
    data_only: bool


@record(frozen=True, slots=True)
class Fallocate(Request[Stat]):
    """fallocate(2)."""

    handle: InodeHandle
    mode: int
    offset: int
    length: int


@record(frozen=True, slots=True)
class Seek(Request[Position]):
    """lseek(2) with SEEK_DATA or SEEK_HOLE."""

    handle: InodeHandle
    offset: int
    whence: int


@record(frozen=True, slots=True)
class CopyRange(Request[Position]):
    """copy_file_range(2), done on the server."""

    source: InodeHandle
    source_offset: int
    target: InodeHandle
    target_offset: int
    length: int


# --- tokens ----------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class GetToken(Request[TokenGrant]):
    """Tokens of one inode, granted together: *data* for at least ``[start, end)``, *attr* for the attributes;
    NONE asks for none. A write that extends a file needs both at once, or two writers could take the one
    from each other for ever while each waits for the other."""

    handle: InodeHandle
    data: TokenMode
    start: int
    end: int
    attr: TokenMode


@record(frozen=True, slots=True)
class ReturnTokens(Request[Done]):
    """The client gave up, unasked, what of *tokens* exceeds their mode. It had received so many frames of
    this session by then: a grant in a later one is not what it gave up."""

    tokens: tuple[Token, ...]
    frames_received: int


@record(frozen=True, slots=True)
class Recall(Request[Recalled]):
    """Callback: somebody else needs this range. Keep at most *token.mode* of it: write back, drop, then
    answer. Answering must not wait for anything that the server may grant later (K6). *removal*: the
    one name in the range is about to be taken away from what it stands for, and nobody gets in between. (What
    it is for may still fail.)"""

    token: Token
    removal: bool = False


# --- locks -----------------------------------------------------------------------------------------------

# Ranges are inclusive at both ends (see `nfsfuse.protocol.locks`). *open_file* is a number that the client
# gives each of its open files; an owner and an open file belong to the session that names them.


@record(frozen=True, slots=True)
class GetLock(Request[LockFound]):
    """F_GETLK. EINVAL for what is no range."""

    handle: InodeHandle
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    start: int
    end: int


@record(frozen=True, slots=True)
class SetLock(Request[Done]):
    """Lock, convert or unlock; a flock always the whole file. With *wait* it queues until it is granted or
    cancelled (`Cancel`: EINTR), and holds up nothing else; without, EAGAIN if it would have to wait. EDEADLK
    if it would wait for ever, ENOLCK past a limit, EINVAL for what is no range."""

    handle: InodeHandle
    open_file: OpenId
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    start: int
    end: int
    pid: int
    wait: bool


@record(frozen=True, slots=True)
class FlushLocks(Request[Done]):
    """A process closed a descriptor: all POSIX locks of *owner* on the file go (fcntl(2))."""

    handle: InodeHandle
    owner: LockOwner


@record(frozen=True, slots=True)
class ReleaseLocks(Request[Done]):
    """The last close of an open file: what was locked through it and is still held goes (OFD locks), and the
    flock of *owner*, through whichever open file that came."""

    handle: InodeHandle
    open_file: OpenId
    owner: LockOwner | None


# --- after the server's restart --------------------------------------------------------------------------

# A client whose session is known to the new epoch takes back what it holds before anything else: as many
# `Reclaim` as it takes, then all requests that it has no answer to, under their old ids, then
# `ReclaimComplete`.


@record(frozen=True, slots=True)
class Reclaim(Request[Reclaimed]):
    """Some of what the client held in the last epoch, at most CLAIMS_MAX in all; open files keep their
    numbers."""

    tokens: tuple[Token, ...]
    open_files: tuple[OpenFile, ...]
    locks: tuple[OwnedLock, ...]


@record(frozen=True, slots=True)
class ReclaimComplete(Request[Done]):
    """There is nothing more to reclaim, and nothing more that was asked in the last epoch."""


CLIENT_REQUESTS: Final[tuple[type[Request[Message]], ...]] = (
    Hello, Heartbeat, Goodbye, Cancel,
    Lookup, GetAttr, SetAttr, ReadLink, SymLink, MkNod, MkDir, Link, Unlink, RmDir, Rename, ReadDir, StatFs,
    GetXattr, SetXattr, ListXattr, RemoveXattr,
    Open, Create, Release, Read, Write, Fsync, Fallocate, Seek, CopyRange,
    GetToken, ReturnTokens,
    GetLock, SetLock, FlushLocks, ReleaseLocks,
    Reclaim, ReclaimComplete,
    Accessed,
)  # fmt: skip

SERVER_REQUESTS: Final[tuple[type[Request[Message]], ...]] = (Recall,)

REPLIES: Final[tuple[type[Message], ...]] = (
    Done, Welcome, Entry, Stat, Opened, Data, Written, Target, Listing, Statistics, Value, Names, Position,
    TokenGrant, Recalled, LockFound, Reclaimed,
)  # fmt: skip

REPLY_OF: Final[dict[type[Message], type[Message]]] = {
    request: request.__orig_bases__[0].__args__[0]  # type: ignore[attr-defined]
    for request in CLIENT_REQUESTS + SERVER_REQUESTS
}
"""The reply each request must be answered with; any other is a protocol error."""

CODES: Final[dict[type[Message], int]] = {
    message: code for code, message in enumerate(CLIENT_REQUESTS + SERVER_REQUESTS + REPLIES, start=1)
}
"""Numbers on the wire. PROTOCOL_VERSION is raised whenever they change after a release."""

IDEMPOTENT: Final[frozenset[type[Message]]] = frozenset({
    Hello, Heartbeat, Cancel, Lookup, GetAttr, ReadLink, ReadDir, StatFs, GetXattr, ListXattr, Read, Fsync,
    Seek, GetLock, Accessed,
})  # fmt: skip
"""May be done again. Within a session nothing ever is; these may even be asked anew in the next one."""
