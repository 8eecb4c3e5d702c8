"""The greeting: the one exchange that comes before the numbered frames, on every connection.

The client says `Hello`, the server `Welcome` or an errno, both under request id 0. They tell each other how
many frames of the session each has; what follows on the connection goes on from there.

Peers of different protocol versions part here, with a sentence that says what to do: the server refuses, as it
is told the client's version first. So `Hello` and an errno in reply must be understood by all versions.
"""

from __future__ import annotations

import errno

from nfsfuse.protocol.codec import (
    FailureEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    decode,
    encode,
    version_of,
)
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.framing import frame_prefix
from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.messages import Hello, Welcome
from nfsfuse.protocol.types import RequestId
from nfsfuse.rpc.link import Link

GREETING = RequestId(0)


async def greet(link: Link, hello: Hello) -> Welcome:
    """The client's side: the server's answer. Raises FsError if it refuses, ConnectionLost, ProtocolError."""
    _send(link, encode(RequestEnvelope(GREETING, hello)))
    await link.flush()
    match decode((await link.receive_one()).header):
        case ReplyEnvelope(id=0, message=Welcome() as welcome):
            return welcome
        case FailureEnvelope(id=0, errno=number, detail=detail):
            if number == errno.EPROTONOSUPPORT and "upgrade" not in detail:  # a server of version 1
                detail += ": upgrade whichever is the older"
            raise FsError(number, detail)
        case ReplyEnvelope(id=0, message=message):
            raise ProtocolError(f"Hello was answered by {type(message).__name__}")
        case _:
            raise ProtocolError("Hello was not answered")


async def be_greeted(link: Link) -> Hello:
    """The server's side: what the client says. Raises FsError, which the client has been told, if that speaks
    another version of the protocol; ConnectionLost, ProtocolError."""
    header = (await link.receive_one()).header
    version = version_of(header)
    if version is not None and version != PROTOCOL_VERSION:
        failure = FsError(errno.EPROTONOSUPPORT, other_version(version))
        await refuse(link, failure)
        raise failure.alone()
    match decode(header):
        case RequestEnvelope(id=0, message=Hello() as hello):
            return hello
        case RequestEnvelope(message=message):
            raise ProtocolError(f"{type(message).__name__} before Hello")
        case _:
            raise ProtocolError("an answer before Hello")


def other_version(version: int) -> str:
    """What a server tells a client that speaks *version* of the protocol, which is not ours."""
    what = "client (nfsfuse)" if version < PROTOCOL_VERSION else "server (nfsfuse-server)"
    return (
        f"the server speaks protocol version {PROTOCOL_VERSION}, the client {version}: "
        f"upgrade the {what}, or use one of the other's version"
    )


def welcome(link: Link, message: Welcome) -> None:
    """Answer the greeting."""
    _send(link, encode(ReplyEnvelope(GREETING, message)))


async def refuse(link: Link, failure: FsError) -> None:
    """Answer the greeting with an errno. Raises ConnectionLost."""
    _send(link, encode(FailureEnvelope(GREETING, failure.errno, failure.detail)))
    await link.flush()


def _send(link: Link, header: bytes) -> None:
    link.send([frame_prefix(header, 0)])
