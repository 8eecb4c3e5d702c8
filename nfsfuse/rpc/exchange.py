"""One side of a session's requests and replies, without I/O: ids, and which reply belongs to which request.

Both sides of a connection own an `Exchange`, and both may ask. It is fed frames in the order received and
answers with events in the same order; whoever drives it must apply each event before the next task runs: a
token granted and recalled in two consecutive frames must be seen as granted first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nfsfuse.protocol import framing
from nfsfuse.protocol.codec import (
    FailureEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    decode,
    encode,
)
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.framing import Frame
from nfsfuse.protocol.limits import REQUESTS_IN_FLIGHT_MAX
from nfsfuse.protocol.messages import REPLY_OF, Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import RequestId

Payload = framing.Payload

Outgoing = tuple[bytes, Payload]
"""One frame to be sent: its header and its payload."""


@record(frozen=True, slots=True)
class RequestArrived:
    """The peer asks. It must be answered, once, by `Exchange.reply` or `Exchange.fail`."""

    id: RequestId
    message: Message
    payload: bytes | bytearray


@record(frozen=True, slots=True)
class ReplyArrived:
    """The peer answered the request *id*."""

    id: RequestId
    message: Message
    payload: bytes | bytearray


@record(frozen=True, slots=True)
class FailureArrived:
    """The peer answered the request *id* with an errno."""

    id: RequestId
    errno: int
    detail: str


Event = RequestArrived | ReplyArrived | FailureArrived


class Answering(NamedTuple):
    """The answer that is being applied: the *request* it is to, the *oldest* of those that are unanswered, it
    among them, and the *newest* that was asked so far. Requests are numbered in the order in which they are
    asked."""

    request: RequestId
    oldest: RequestId
    newest: RequestId


class Exchange:
    """What this side asked and was asked. Every `Outgoing` returned is one frame, to be sent whole and in the
    order of the calls."""

    def __init__(self, may_ask_us: frozenset[type[Message]]) -> None:
        self._may_ask_us = may_ask_us
        self._next_id = 1
        self._asked: dict[RequestId, type[Message]] = {}
        self._answering: dict[RequestId, type[Message]] = {}

    @property
    def asked(self) -> int:
        """How many of our requests are unanswered."""
        return len(self._asked)

    @property
    def newest(self) -> RequestId:
        """The number of what was asked last."""
        return RequestId(self._next_id - 1)

    def request(self, message: Message, payload: Payload = b"") -> tuple[RequestId, Outgoing]:
        """Ask *message*: its id, and the frame to send."""
        number = RequestId(self._next_id)
        frame = encode(RequestEnvelope(number, message)), payload
        # Only now that nothing can fail: a request that is not sent is never answered either.
        self._next_id += 1
        self._asked[number] = type(message)
        return number, frame

    def renew(self, asked: Iterable[RequestId]) -> None:
        """The peer knows nothing of this session any more: what it asked is forgotten, and of what it was
        asked all but *asked*, which will be sent again (`again`)."""
        self._answering.clear()
        self._asked = {number: self._asked[number] for number in asked}

    def again(self, number: RequestId, message: Message, payload: Payload) -> Outgoing:
        """The frame of the unanswered request *number*, for a peer that has lost it."""
        assert self._asked[number] is type(message)
        return encode(RequestEnvelope(number, message)), payload

    def reply(self, number: RequestId, message: Message, payload: Payload = b"") -> Outgoing:
        """Answer the peer's request *number*."""
        asked = self._answering[number]
        assert type(message) is REPLY_OF[asked], (asked, message)
        frame = encode(ReplyEnvelope(number, message)), payload
        del self._answering[number]  # not before: a reply that cannot be encoded can still be failed
        return frame

    def fail(self, number: RequestId, errno: int, detail: str) -> Outgoing:
        """Answer the peer's request *number* with a positive *errno*."""
        del self._answering[number]
        return encode(FailureEnvelope(number, errno, detail)), b""

    def is_answering(self, number: RequestId) -> bool:
        """Whether the peer's request *number* waits for our answer."""
        return number in self._answering

    def received(self, frame: Frame) -> Event:
        """What *frame* says. Raises ProtocolError for what no correct peer sends."""
        envelope = decode(frame.header)
        if isinstance(envelope, RequestEnvelope):
            return self._asked_by_peer(envelope, frame.payload)
        asked = self._asked.pop(envelope.id, None)
        if asked is None:
            raise ProtocolError(f"an answer to request {envelope.id}, which is not asked")
        if isinstance(envelope, FailureEnvelope):
            return FailureArrived(envelope.id, envelope.errno, envelope.detail)
        if type(envelope.message) is not REPLY_OF[asked]:
            raise ProtocolError(f"{asked.__name__} was answered by {type(envelope.message).__name__}")
        return ReplyArrived(envelope.id, envelope.message, frame.payload)

    def _asked_by_peer(self, envelope: RequestEnvelope, payload: bytes | bytearray) -> RequestArrived:
        number, message, answering = envelope.id, envelope.message, self._answering
        if type(message) not in self._may_ask_us:
            raise ProtocolError(f"{type(message).__name__} is no request of this peer's")
        if number == 0:
            raise ProtocolError("a request with the greeting's id")
        if number in answering:
            raise ProtocolError(f"request id {number} is in use")
        if len(answering) >= REQUESTS_IN_FLIGHT_MAX:
            raise ProtocolError(f"more than {REQUESTS_IN_FLIGHT_MAX} requests in flight")
        answering[number] = type(message)
        return RequestArrived(number, message, payload)

    def check(self) -> None:
        """Assert the invariants."""
        assert list(self._asked) == sorted(self._asked), "ids count up"
        assert all(number < self._next_id for number in self._asked)
        assert len(self._answering) <= REQUESTS_IN_FLIGHT_MAX
