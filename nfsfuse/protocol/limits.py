"""Every limit of the wire, with its unit and the reason for the number.

Both sides check them: the sender so that a bug shows where it is made, the receiver because it must not
trust.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2
"""Raised whenever an old peer could misunderstand a new one; there is no negotiation below it."""

MAGIC: Final = b"nfsfuse\n"
"""The first 8 bytes each side sends: tells a stranger's connection at once from a peer's."""

IO_SIZE_MAX: Final = 1 << 20
"""Bytes of file data in one read or write: FUSE's own largest request (256 pages)."""

PAYLOAD_SIZE_MAX: Final = 4 * IO_SIZE_MAX
"""Bytes of payload in one frame: room to fetch ahead several reads in one request."""

HEADER_SIZE_MAX: Final = 1 << 20
"""Bytes of msgpack in one frame. The largest are directory listings, which are cut to fit."""

LISTING_ENTRIES_MAX: Final = 2048
"""Entries in one ReadDir reply: 2048 x (255 bytes of name + ~150 of node) stays below HEADER_SIZE_MAX."""

HANDLE_SIZE_MAX: Final = 192
"""Bytes in an inode handle: MAX_HANDLE_SZ of Linux (128) with type, signature and room."""

XATTR_SIZE_MAX: Final = 65536
"""Bytes in an extended attribute's value: XATTR_SIZE_MAX of <linux/limits.h>."""

PATH_SIZE_MAX: Final = 4096
"""Bytes in a symbolic link's target: PATH_MAX of <linux/limits.h>."""

TEXT_SIZE_MAX: Final = 4096
"""Bytes in a text for people (an error's detail, a version)."""

SEQUENCE_LENGTH_MAX: Final = 65536
"""Elements in any list on the wire (entries, tokens): bounds the work one small frame can ask for."""

REQUESTS_IN_FLIGHT_MAX: Final = 1024
"""Unanswered requests of one session. A client has at most ~100 FUSE requests and some background
transfers under way; one that has more is broken, and would use up the server's memory."""

CLAIMS_MAX: Final = 1024
"""Tokens, open files and locks in one Reclaim: 1024 x (HANDLE_SIZE_MAX and ~60 bytes) stay well below
HEADER_SIZE_MAX, and the server does them in a few milliseconds."""

RELEASES_MAX: Final = 64
"""Closed files in one Release: what a message costs is shared by many by then, and the server does them in a
millisecond or two, in which it serves nobody else. 64 x (two tokens with HANDLE_SIZE_MAX each) stay well below
HEADER_SIZE_MAX."""

ACCESSES_MAX: Final = 64
"""Files in one Accessed, for the same reasons."""

SMALL_FILE_SIZE_MAX: Final = 65536
"""Bytes: a file no larger than this comes with the reply to its open."""

ACKNOWLEDGE_BYTES: Final = 4 * IO_SIZE_MAX
"""Bytes received after which they are acknowledged by a frame of its own, if no other carried that: few enough
for the peer to keep, and many enough that the 16 bytes cost nothing."""

ACKNOWLEDGE_FRAMES: Final = 256
"""Frames, likewise."""

KEPT_BYTES_MAX: Final = 256 << 20
"""Bytes that a server keeps for one session whose client has not acknowledged them; more ends the session. A
client that is cut off has asked for this much at most: 64 reads of IO_SIZE_MAX in the background (FUSE's
max_background), and as many programs that read directly, leave half of it."""
