from collections.abc import Callable
from types import EllipsisType
from typing import final

from nfsfuse.protocol.framing import Payload as Buffer

@final
class Request:
    """The facts of one FUSE request, as the kernel sent them; immutable. A field that the operation does
    not have is 0, or None where 0 would be a value."""

    @property
    def opcode(self) -> int:
        """An `abi.Opcode`."""
    @property
    def unique(self) -> int:
        """The kernel's number of this request; never used again on this mount."""
    @property
    def nodeid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int:
        """The *thread* that asks; 0 if it is in a foreign pid namespace, or for page write-back."""
    @property
    def fh(self) -> int | None: ...
    @property
    def lock_owner(self) -> int | None:
        """READ, WRITE and SETATTR: under a mandatory-lock owner; FLUSH: whose POSIX locks end now;
        RELEASE: whose flock lock ends now."""
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def flags(self) -> int:
        """The open file's ``O_*`` flags as they are now (READ, WRITE, OPEN, CREATE, RELEASE)."""
    @property
    def operation_flags(self) -> int:
        """``FUSE_READ_*``, ``FUSE_WRITE_*``, ``FUSE_OPEN_*``, ``FUSE_RELEASE_*``, ``FUSE_FSYNC_*`` or
        ``FUSE_GETATTR_*``, by opcode."""
    @property
    def valid(self) -> int:
        """``FATTR_*`` bits of SETATTR."""
    @property
    def is_write_back(self) -> bool:
        """A WRITE of pages that a program dirtied through a mapping (FUSE_WRITE_CACHE), not a write(2)."""
    @property
    def kill_suidgid(self) -> bool:
        """The filesystem has to clear set-user-ID and set-group-ID with this WRITE, OPEN, CREATE or SETATTR
        (FUSE_HANDLE_KILLPRIV_V2)."""

def current_request() -> Request: ...
def arm(
    *,
    taken: int,
    quick: int,
    wanted: int,
    decided: int,
    required: int,
    max_readahead: int,
    max_write: int,
    max_background: int,
    congestion_threshold: int,
    on_message: Callable[[Request, bytes], None],
    on_init: Callable[[], None],
    on_quick: Callable[[Request, memoryview], Buffer | int | EllipsisType | None],
) -> None: ...
def device() -> int: ...

LATER: EllipsisType
"""*on_quick* answers the request itself, when it can."""

WAIT: int
TURN: int
MESSAGE: int

def receive() -> int:
    """Deal with what the device has. WAIT: there is nothing now; TURN: other tasks are to run before this is
    called again; MESSAGE: there is one for libfuse, or the end of the session."""

def negotiation() -> tuple[int, bytes, bytes, bytes] | None: ...
