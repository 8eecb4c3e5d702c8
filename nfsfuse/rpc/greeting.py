"""The greeting: the one exchange that comes before the numbered frames, on every connection.

The client says `Hello`, the server `Welcome` or an errno, both under request id 0. They tell each other how
many frames of the session each has; what follows on the connection goes on from there.
"""

from __future__ import annotations

from nfsfuse.protocol.codec import FailureEnvelope, ReplyEnvelope, RequestEnvelope, decode, encode
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.framing import frame_prefix
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
        case FailureEnvelope(id=0, errno=errno, detail=detail):
            raise FsError(errno, detail)
        case ReplyEnvelope(id=0, message=message):
            raise ProtocolError(f"Hello was answered by {type(message).__name__}")
        case _:
            raise ProtocolError("Hello was not answered")


async def be_greeted(link: Link) -> Hello:
    """The server's side: what the client says. Raises ConnectionLost, ProtocolError."""
    match decode((await link.receive_one()).header):
        case RequestEnvelope(id=0, message=Hello() as hello):
            return hello
        case RequestEnvelope(message=message):
            raise ProtocolError(f"{type(message).__name__} before Hello")
        case _:
            raise ProtocolError("an answer before Hello")


def welcome(link: Link, message: Welcome) -> None:
    """Answer the greeting."""
    _send(link, encode(ReplyEnvelope(GREETING, message)))


async def refuse(link: Link, failure: FsError) -> None:
    """Answer the greeting with an errno. Raises ConnectionLost."""
    _send(link, encode(FailureEnvelope(GREETING, failure.errno, failure.detail)))
    await link.flush()


def _send(link: Link, header: bytes) -> None:
    link.send([frame_prefix(header, 0)])
