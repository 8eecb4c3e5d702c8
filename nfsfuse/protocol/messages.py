"""Every message of the wire, one frozen dataclass each, with its code; those that answer are in `replies`.

A request names the type of its reply (`Request[R]`), so a call is typed end to end. Either side may ask:
`CLIENT_REQUESTS` go from client to server, `SERVER_REQUESTS` are the callbacks. A message that carries file
data carries it in the frame's payload, never in a field; its docstring says so.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from nfsfuse.protocol.codes import Message as Message
from nfsfuse.protocol.codes import message
from nfsfuse.protocol.locks import LockKind, LockMode, OwnedLock
from nfsfuse.protocol.record import record
from nfsfuse.protocol.replies import REPLIES as REPLIES
from nfsfuse.protocol.replies import Data as Data
from nfsfuse.protocol.replies import Done as Done
from nfsfuse.protocol.replies import Entry as Entry
from nfsfuse.protocol.replies import InodeFlags as InodeFlags
from nfsfuse.protocol.replies import Listing as Listing
from nfsfuse.protocol.replies import LockFound as LockFound
from nfsfuse.protocol.replies import Names as Names
from nfsfuse.protocol.replies import Opened as Opened
from nfsfuse.protocol.replies import Position as Position
from nfsfuse.protocol.replies import Recalled as Recalled
from nfsfuse.protocol.replies import Reclaimed as Reclaimed
from nfsfuse.protocol.replies import Stat as Stat
from nfsfuse.protocol.replies import Statistics as Statistics
from nfsfuse.protocol.replies import Target as Target
from nfsfuse.protocol.replies import TokenGrant as TokenGrant
from nfsfuse.protocol.replies import Value as Value
from nfsfuse.protocol.replies import Watched as Watched
from nfsfuse.protocol.replies import Welcome as Welcome
from nfsfuse.protocol.replies import Written as Written
from nfsfuse.protocol.tokens import Token, TokenMode
from nfsfuse.protocol.types import (
    AttributeChanges,
    ClientId,
    Credentials,
    Epoch,
    Extent,
    InodeHandle,
    LockOpenId,
    LockOwner,
    Node,
    OpenFile,
    OpenId,
    RequestId,
    SessionId,
    Sync,
)

R_co = TypeVar("R_co", bound=Message, covariant=True)


class Request(Message, Generic[R_co]):
    """A message that is answered by an ``R`` or by an errno."""

    __slots__ = ()


# --- session ---------------------------------------------------------------------------------------------


@message(1)
class Hello(Request[Welcome]):
    """Begins a connection, before the numbered frames of the session (`nfsfuse.rpc.greeting`). *session_id* is
    empty for a new session, else the one to resume, which belongs to *epoch* and of whose frames the client has
    *frames_received*. *replaces*, unless empty, is the session of a daemon that is known to be dead: it ends at
    once rather than with its lease.

    It never changes, nor does its code: a peer of whatever version has to understand it to refuse it. What is
    new goes into *features*."""

    version: int
    client_id: ClientId
    session_id: SessionId
    epoch: Epoch
    frames_received: int
    replaces: SessionId
    client_name: str
    features: tuple[str, ...]


@message(2)
class Heartbeat(Request[Done]):
    """Keeps the lease alive, and tells whether the connection is."""


@message(3)
class Goodbye(Request[Done]):
    """Ends the session: everything it holds is released now rather than after the lease."""


@message(4)
class Cancel(Request[Done]):
    """Give up on *request*, if it is still waiting: it is then answered EINTR. An interrupted program's."""

    request: RequestId


# --- names and attributes --------------------------------------------------------------------------------


@message(5)
class Lookup(Request[Entry]):
    """Find *name* in *parent*. *content*: if it is a small file and nobody is in the way, what is in it is told
    too, as the file is likely to be opened next. ENOENT, ENOTDIR, EXDEV (another filesystem is mounted there).
    """

    parent: InodeHandle
    name: bytes
    content: bool = False


@message(65)
class LookupNumber(Request[Entry]):
    """Find the inode with this *number* (stat(2)'s st_ino), wherever in the export it is: for who has nothing
    else of it, and is ready to wait for a walk through all names. No node if there is none."""

    number: int


@message(66)
class LookupParent(Request[Entry]):
    """Find what the directory *handle* is in. Of the root that is the root."""

    handle: InodeHandle


@message(6)
class GetAttr(Request[Stat]):
    """stat(2). ESTALE if the inode is gone."""

    handle: InodeHandle


@message(7)
class SetAttr(Request[Stat]):
    """chmod, chown, truncate, utimensat.

    *blocks_write_back*: until a change of the size is answered, the client's kernel writes no page of the file
    back (fuse_set_nowrite), and there may be dirty ones: a recall of those waits for this request. So it does
    not queue behind whoever the recall is for. EINTR: it waits itself for a client in the same position."""

    handle: InodeHandle
    changes: AttributeChanges
    blocks_write_back: bool = False


@message(8)
class ReadLink(Request[Target]):
    """readlink(2)."""

    handle: InodeHandle


@message(9)
class SymLink(Request[Entry]):
    """symlink(2)."""

    parent: InodeHandle
    name: bytes
    target: bytes
    credentials: Credentials


@message(10)
class MkNod(Request[Entry]):
    """mknod(2); *mode* has the type."""

    parent: InodeHandle
    name: bytes
    mode: int
    rdev: int
    credentials: Credentials


@message(11)
class MkDir(Request[Entry]):
    """mkdir(2)."""

    parent: InodeHandle
    name: bytes
    mode: int
    credentials: Credentials


@message(12)
class Link(Request[Entry]):
    """link(2)."""

    handle: InodeHandle
    parent: InodeHandle
    name: bytes


@message(13)
class Unlink(Request[Done]):
    """unlink(2)."""

    parent: InodeHandle
    name: bytes


@message(14)
class RmDir(Request[Done]):
    """rmdir(2)."""

    parent: InodeHandle
    name: bytes


@message(15)
class Rename(Request[Done]):
    """renameat2(2), with its *flags*. The answer tells first of the inode that now has the new name, with
    RENAME_EXCHANGE then of the one that has the old name, which may be the same."""

    parent: InodeHandle
    name: bytes
    new_parent: InodeHandle
    new_name: bytes
    flags: int


@message(16)
class ReadDir(Request[Listing]):
    """The entries after *cookie* (0: from the start), at most *limit* of them."""

    handle: InodeHandle
    cookie: int
    limit: int


@message(17)
class StatFs(Request[Statistics]):
    """statvfs(3) of the export."""


@message(18)
class GetXattr(Request[Value]):
    """getxattr(2)."""

    handle: InodeHandle
    name: bytes


@message(19)
class SetXattr(Request[Stat]):
    """setxattr(2) with XATTR_CREATE or XATTR_REPLACE in *flags*. The payload is the value. *kill_sgid*: who
    sets the ACL that this is may not leave the inode set-group-ID (`posix_acl_update_mode` in Linux)."""

    handle: InodeHandle
    name: bytes
    flags: int
    kill_sgid: bool = False


@message(20)
class ListXattr(Request[Names]):
    """listxattr(2)."""

    handle: InodeHandle


@message(21)
class RemoveXattr(Request[Stat]):
    """removexattr(2)."""

    handle: InodeHandle
    name: bytes


@message(68)
class GetInodeFlags(Request[InodeFlags]):
    """ioctl(2) FS_IOC_GETFLAGS, one number; if *extended* FS_IOC_FSGETXATTR, five: flags, size of extents,
    their number, project, size of extents for copy-on-write. ENOTTY where the server's filesystem has none."""

    handle: InodeHandle
    extended: bool


@message(69)
class SetInodeFlags(Request[Stat]):
    """ioctl(2) FS_IOC_SETFLAGS or, if *extended*, FS_IOC_FSSETXATTR, with as many *numbers*. EOPNOTSUPP for a
    flag that the server's filesystem or this protocol does not have."""

    handle: InodeHandle
    extended: bool
    numbers: tuple[int, ...]


# --- open files and data ---------------------------------------------------------------------------------


@message(22)
class Open(Request[Opened]):
    """Open a regular file. *flags* as of open(2): the access mode and O_TRUNC are heeded. Tokens for
    data are granted as far as nobody has to be asked for them. Without *want* nothing is granted, nobody is
    waited for, and the attributes in the reply are not to be believed: it is only to pin the inode."""

    handle: InodeHandle
    flags: int
    want: bool


@message(23)
class Create(Request[Opened]):
    """open(2) with O_CREAT: makes *name* if it is not there (or fails with EEXIST under O_EXCL), and opens
    it; atomic, for all clients together."""

    parent: InodeHandle
    name: bytes
    mode: int
    flags: int
    credentials: Credentials


@message(67)
class TmpFile(Request[Opened]):
    """open(2) with O_TMPFILE in the directory *parent*: makes an inode without a name, and opens it. `Link` may
    give it one."""

    parent: InodeHandle
    mode: int
    credentials: Credentials


@record(frozen=True, slots=True)
class Closed:
    """The last close of an open file. With it the client gave up what of *tokens* exceeds their mode, when it
    had received *frames_received* frames; see `ReturnTokens`."""

    open_id: OpenId
    tokens: tuple[Token, ...] = ()
    frames_received: int = 0


@message(24)
class Release(Request[Done]):
    """The last closes of at most RELEASES_MAX open files, in their order, and what was given up with each.
    EBADF if one was not open; all others are released all the same."""

    closed: tuple[Closed, ...]


@message(70)
class Accessed(Request[Done]):
    """Programs have read at most ACCESSES_MAX regular files (and each of them is told once for many reads):
    their times of the last access change, as far as the server's filesystem keeps these (relatime of
    mount(8)). No `Read` does that by itself, as not everything that is read ahead is ever looked at. A file
    that is gone does not matter."""

    handles: tuple[InodeHandle, ...]


@message(25)
class Read(Request[Data]):
    """pread(2) of at most PAYLOAD_SIZE_MAX bytes, page-aligned, together with a token of *mode* for them.
    NONE: the client holds one already; EAGAIN if it does not, any more. *sizeless*: less than *size* says
    nothing about where the file ends, for which the server would have to wait for others; the rest is zeros."""

    handle: InodeHandle
    offset: int
    size: int
    mode: TokenMode
    sizeless: bool = False


@message(26)
class Write(Request[Written]):
    """Write-back: pwrite(2) of the payload at *offset*, under an EXCLUSIVE token; EAGAIN without one. It
    never waits for another client, as recalls are acknowledged only after it (K6).

    *sync*: with the `Fsync` that would follow, of all of the file, in one round trip. Answered when both are
    done."""

    handle: InodeHandle
    offset: int
    sync: Sync = Sync.NONE


@message(57)
class WriteExtents(Request[Written]):
    """As `Write`, of several *extents* of one file: at most EXTENTS_PER_WRITE_MAX, disjoint and ascending. The
    payload has their data one after the other. Every page of them is held EXCLUSIVE, or nothing is written
    (EAGAIN); after any other error some may have been."""

    handle: InodeHandle
    extents: tuple[Extent, ...]
    sync: Sync = Sync.NONE


@message(27)
class Fsync(Request[Done]):
    """fsync(2), or fdatasync(2) if *data_only*, of a file or directory on the server's disk."""

    handle: InodeHandle
    data_only: bool


@message(28)
class Fallocate(Request[Stat]):
    """fallocate(2)."""

    handle: InodeHandle
    mode: int
    offset: int
    length: int


@message(29)
class Seek(Request[Position]):
    """lseek(2) with SEEK_DATA or SEEK_HOLE."""

    handle: InodeHandle
    offset: int
    whence: int


@message(30)
class CopyRange(Request[Position]):
    """copy_file_range(2), done on the server."""

    source: InodeHandle
    source_offset: int
    target: InodeHandle
    target_offset: int
    length: int


# --- tokens ----------------------------------------------------------------------------------------------


@message(31)
class GetToken(Request[TokenGrant]):
    """Tokens of one inode, granted together: *data* for at least ``[start, end)``, *attr* for the attributes;
    NONE asks for none. A write that extends a file needs both at once, or two writers could take the one
    from each other for ever while each waits for the other."""

    handle: InodeHandle
    data: TokenMode
    start: int
    end: int
    attr: TokenMode


@message(32)
class ReturnTokens(Request[Done]):
    """The client gave up, unasked, what of *tokens* exceeds their mode. It had received so many frames of
    this session by then: a grant in a later one is not what it gave up."""

    tokens: tuple[Token, ...]
    frames_received: int


@message(61)
class Grown(Request[Watched]):
    """The file has become *size* bytes long here, under an EXCLUSIVE token for its attributes that the client
    does not give up before this is answered. Others that have it open are told (`Grew`) before it is."""

    handle: InodeHandle
    size: int


@message(58)
class Recall(Request[Recalled]):
    """Callback: somebody else needs this range. Keep at most *token.mode* of it: write back, drop, then
    answer. Answering must not wait for anything that the server may grant later (K6)."""

    token: Token


@message(59)
class Gone(Request[Done]):
    """Callback: the name *name* in *parent*, which was recalled for that, is removed, and with it the last one
    of *handle*: a kernel that has it there still can tell whoever watches it."""

    parent: InodeHandle
    name: bytes
    handle: InodeHandle


@message(60)
class Moved(Request[Done]):
    """Callback: the directory *node*, of which a name was recalled for that, is at *name* in *parent* now.
    Answered when the kernel has it there, or cannot have it yet; waits for nothing of the server's (K6)."""

    parent: InodeHandle
    name: bytes
    node: Node


@message(62)
class Grew(Request[Done]):
    """Callback: another client has made a file longer that this one has open. Its kernel is to believe that it
    is at least *size* bytes long before this is answered, which must not wait for anything that the server may
    grant later, as with `Recall`."""

    handle: InodeHandle
    size: int


# --- locks -----------------------------------------------------------------------------------------------

# Ranges are inclusive at both ends (see `nfsfuse.protocol.locks`). *open_file* is a number that the client
# gives each of its open files; an owner and an open file belong to the session that names them.


@message(33)
class GetLock(Request[LockFound]):
    """F_GETLK. EINVAL for what is no range."""

    handle: InodeHandle
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    start: int
    end: int


@message(34)
class SetLock(Request[Done]):
    """Lock, convert or unlock; a flock always the whole file. With *wait* it queues until it is granted or
    cancelled (`Cancel`: EINTR), and holds up nothing else; without, EAGAIN if it would have to wait. EDEADLK
    if it would wait for ever, ENOLCK past a limit, EINVAL for what is no range."""

    handle: InodeHandle
    open_file: LockOpenId
    owner: LockOwner
    kind: LockKind
    mode: LockMode
    start: int
    end: int
    pid: int
    wait: bool


@message(35)
class FlushLocks(Request[Done]):
    """A process closed a descriptor: all POSIX locks of *owner* on the file go (fcntl(2))."""

    handle: InodeHandle
    owner: LockOwner


@message(36)
class ReleaseLocks(Request[Done]):
    """The last close of an open file: what was locked through it and is still held goes (OFD locks), and the
    flock of *owner*, through whichever open file that came."""

    handle: InodeHandle
    open_file: LockOpenId
    owner: LockOwner | None


# --- after the server's restart --------------------------------------------------------------------------

# A client whose session is known to the new epoch takes back what it holds before anything else: as many
# `Reclaim` as it takes, then all requests that it has no answer to, under their old ids, then
# `ReclaimComplete`.


@message(37)
class Reclaim(Request[Reclaimed]):
    """Some of what the client held in the last epoch, at most CLAIMS_MAX in all; open files keep their
    numbers."""

    tokens: tuple[Token, ...]
    open_files: tuple[OpenFile, ...]
    locks: tuple[OwnedLock, ...]


@message(38)
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
    WriteExtents, Grown, Accessed,
    TmpFile, LookupNumber, LookupParent, GetInodeFlags, SetInodeFlags,
)  # fmt: skip

WRITES: Final = (Write, WriteExtents)
"""How data are written back."""

SERVER_REQUESTS: Final[tuple[type[Request[Message]], ...]] = (Recall, Gone, Moved, Grew)

REPLY_OF: Final[dict[type[Message], type[Message]]] = {
    request: request.__orig_bases__[0].__args__[0]  # type: ignore[attr-defined]
    for request in CLIENT_REQUESTS + SERVER_REQUESTS
}
"""The reply each request must be answered with; any other is a protocol error."""

IDEMPOTENT: Final[frozenset[type[Message]]] = frozenset({
    Hello, Heartbeat, Cancel, Lookup, GetAttr, ReadLink, ReadDir, StatFs, GetXattr, ListXattr, Read, Fsync,
    Seek, GetLock, LookupNumber, LookupParent, GetInodeFlags, Accessed,
})  # fmt: skip
"""May be done again. Within a session nothing ever is; these may even be asked anew in the next one."""
