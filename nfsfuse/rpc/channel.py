"""A session's requests in both directions: an `Exchange` over one connection after the other.

Frames are numbered and kept until the peer has them (`nfsfuse.rpc.sequence`), so a channel outlives its
connections: what is asked or answered while there is none is sent when there is one again, and each frame is
applied exactly once and in order. It ends when whoever owns the session says so.

Of each connection one task reads. Every event is applied synchronously in the order received: an incoming
request is handed to *on_request* (which may start a task, but decides before it returns), a reply first runs
the hook of its call and then wakes the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import outcome
import trio

from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.framing import Frame, frame_prefix
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.types import RequestId
from nfsfuse.rpc.exchange import (
    Answering,
    Exchange,
    FailureArrived,
    Outgoing,
    Payload,
    ReplyArrived,
    RequestArrived,
)
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.sequence import FrameSequence
from nfsfuse.rpc.streams import ConnectionLost

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Message)
Applied = Callable[[Message, bytes | bytearray], None]
Failed = Callable[[FsError | ConnectionLost], None]


@dataclass(slots=True, eq=False)
class Asked:
    """A request of ours that is not answered yet. *frame* is its number in the sequence. *task* waits for it,
    if any does. *posted*: nobody is told of a failure. *wanted*: whoever asked has not given up."""

    id: RequestId
    message: Message
    payload: Payload
    task: trio.lowlevel.Task | None
    apply: Applied | None
    failed: Failed | None
    posted: bool
    wanted: bool = True
    frame: int = 0


class Channel:
    """Requests in both directions, over the links that `attach` is given. *clock* times the frames sent;
    *on_acknowledged* is told when the newest frame that the peer is known to have was sent."""

    def __init__(
        self,
        exchange: Exchange,
        on_request: Callable[[RequestArrived], None],
        on_abandoned: Callable[[RequestId], None] | None = None,
        on_acknowledged: Callable[[float], None] | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._exchange = exchange
        self._on_request = on_request
        self._on_abandoned = on_abandoned
        self._on_acknowledged = on_acknowledged
        self._clock = clock
        self._calls: dict[RequestId, Asked] = {}
        self._sequence = FrameSequence()
        self._link: Link | None = None
        self._transmitted = 0  # frames that were ever handed to a link
        self._answered = RequestId(0)  # the request whose answer is being applied
        self._lost: str | None = None
        self._tracing = log.isEnabledFor(logging.DEBUG)  # asked once: it is on the path of every message
        self.heard_at = clock()
        """When something last arrived, in the clock's seconds."""

    @property
    def lost(self) -> str | None:
        """Why the session is over, None while it is not."""
        return self._lost

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link is not None

    @property
    def frames_sent(self) -> int:
        """Numbered frames of the session so far."""
        return self._sequence.sent

    @property
    def frames_received(self) -> int:
        """Numbered frames of the peer's that were applied."""
        return self._sequence.received

    @property
    def frames_acknowledged(self) -> int:
        """Numbered frames of ours that the peer is known to have."""
        return self._sequence.acknowledged

    @property
    def kept_bytes(self) -> int:
        """What is kept because the peer has not acknowledged it."""
        return self._sequence.kept_bytes

    @property
    def asked(self) -> int:
        """How many of our requests are unanswered."""
        return len(self._calls)

    @property
    def answering(self) -> Answering:
        """Which answer it is whose *apply* is being run."""
        return Answering(self._answered, next(iter(self._calls)), self._exchange.newest)

    # --- running ---

    def attach(self, link: Link, peer_received: int) -> None:
        """Go on over *link*; the peer has received *peer_received* frames of ours, and what it lacks is sent
        again. A link that is still in use is closed first. Raises ProtocolError if the peer says what cannot
        be."""
        self._acknowledged(peer_received)
        self.disconnect()
        self._link = link
        self.heard_at = self._clock()
        for frame in self._sequence.unacknowledged():
            prefix = frame_prefix(frame.header, len(frame.payload), self._sequence.tell())
            link.send([prefix, frame.payload] if len(frame.payload) else [prefix])
        self._transmitted = self._sequence.sent

    async def serve(self, link: Link) -> None:
        """Serve *link*, which is attached, until the peer closes it between two frames; otherwise raises
        ConnectionLost, or ProtocolError. After that the session is to be given up: it would be sent again."""
        failures: list[ConnectionLost | ProtocolError] = []
        try:
            try:
                async with trio.open_nursery() as nursery:
                    scope = nursery.cancel_scope
                    nursery.start_soon(_until_over, link.send_queued, failures, scope)
                    await _until_over(partial(self._receive, link), failures, scope)
            finally:
                link.close()
                if self._link is link:
                    self._link = None
            if failures or link.failure is not None:
                raise _reason(link, failures)
        finally:
            failures.clear()  # what is in there has come through here: nobody but the collector would free it

    async def _receive(self, link: Link) -> None:
        while True:
            frames = await link.receive()
            if self._link is not link:
                raise ConnectionLost("closed")  # what it still brings comes again over the next one
            if frames is None:
                return
            self.heard_at = self._clock()
            for frame in frames:
                self._arrived(frame)
                if self._link is not link:
                    raise ConnectionLost("closed")
            if self._sequence.owes_acknowledgement():
                link.send([frame_prefix(b"", 0, self._sequence.tell())])

    def _arrived(self, frame: Frame) -> None:
        header, payload, received = frame
        if received != self._sequence.acknowledged:
            self._acknowledged(received)
        if header or payload:  # else it is an acknowledgement, and not numbered
            self._sequence.receive(len(header) + len(payload))
            self._apply(self._exchange.received(frame))

    def _acknowledged(self, count: int) -> None:
        sent_at = self._sequence.acknowledge(count)
        if sent_at is not None and self._on_acknowledged is not None:
            self._on_acknowledged(sent_at)

    def _apply(self, event: RequestArrived | ReplyArrived | FailureArrived) -> None:
        if self._tracing:
            log.debug("got %s", event if len(getattr(event, "payload", b"")) <= 64 else type(event))
        if isinstance(event, RequestArrived):
            self._on_request(event)
            return
        call = self._calls[event.id]
        self._answered = event.id
        if call.frame > self._sequence.acknowledged:
            # The payload of a write may change as soon as it is answered: it must not be kept any longer.
            raise ProtocolError(f"request {event.id} is answered but not acknowledged")
        if isinstance(event, ReplyArrived):
            if call.apply is not None:
                call.apply(event.message, event.payload)
            result: outcome.Outcome[object] = outcome.Value((event.message, event.payload))
        else:
            failure = FsError(event.errno, event.detail)
            if call.failed is not None:
                call.failed(failure)
            if call.posted:
                log.warning("the peer failed %s: %s", call.message, failure)
            result = outcome.Error(failure)
        del self._calls[event.id]  # after the hook: if that fails, the end of the run tells the caller
        if call.task is not None:
            trio.lowlevel.reschedule(call.task, result)

    # --- ends and new beginnings ---

    def disconnect(self) -> None:
        """End the connection now, if there is one. The session goes on over the next."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def end(self, why: str) -> None:
        """The session is over: whoever waits raises ConnectionLost; idempotent."""
        if self._lost is None:
            self._lost = why
            self.renew(lambda _: False, why)

    def renew(
        self,
        keep: Callable[[Asked], bool],
        why: str,
        first: Iterable[tuple[Request[Message], Applied]] = (),
    ) -> None:
        """The peer knows nothing of this session any more, and will be sent a new sequence. It begins with
        the requests *first*. Those that the peer has not answered fail with ConnectionLost(*why*), except the
        ones to *keep*, which are asked again in the old order and under their old ids. What the peer asked
        before need not be answered."""
        self.disconnect()
        calls = [call for call in self._calls.values() if not keep(call)]
        kept = {number: call for number, call in self._calls.items() if call not in calls}
        self._calls = dict(kept)
        self._exchange.renew(kept)
        self._sequence = FrameSequence()
        self._transmitted = 0
        for message, apply in first:
            self.post(message, apply)
        for number, call in kept.items():
            call.frame = self._transmit(self._exchange.again(number, call.message, call.payload))
        for call in calls:
            if call.failed is not None:
                call.failed(ConnectionLost(why))
            if call.task is not None:
                trio.lowlevel.reschedule(call.task, outcome.Error(ConnectionLost(why)))

    def was_transmitted(self, call: Asked) -> bool:
        """Whether the peer may have seen the request: it was given to some connection."""
        return call.frame <= self._transmitted

    def unanswered(self) -> list[Asked]:
        """Our requests without an answer, in the order in which they were asked."""
        return list(self._calls.values())

    # --- asking ---

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Applied | None = None,
        failed: Failed | None = None,
    ) -> tuple[R, bytes | bytearray]:
        """Ask, and wait for the reply and its payload, over as many connections as it takes.

        *apply* is run with them synchronously when they arrive, before anything later on the connection is
        looked at, and also when the caller was cancelled meanwhile; *failed* likewise with what the call
        raises instead. A cancelled caller stops waiting at once, and *on_abandoned* is told. Raises FsError
        for an errno, ConnectionLost when the session is over.
        """
        if self._lost is not None:
            if failed is not None:
                failed(ConnectionLost(self._lost))
            await trio.lowlevel.checkpoint()
            raise ConnectionLost(self._lost)
        call = self._ask(message, payload, trio.lowlevel.current_task(), apply, failed)

        def abort(_: object) -> trio.lowlevel.Abort:
            self.abandon(call)
            return trio.lowlevel.Abort.SUCCEEDED

        reply = await trio.lowlevel.wait_task_rescheduled(abort)
        return cast("tuple[R, bytes | bytearray]", reply)

    def ask(self, message: Request[Message], payload: Payload, apply: Applied, failed: Failed) -> Asked | None:
        """As `call`, without a task that waits: *apply* or *failed* is run. None if the session is over, and
        *failed* has been."""
        if self._lost is not None:
            failed(ConnectionLost(self._lost))
            return None
        return self._ask(message, payload, None, apply, failed)

    def abandon(self, call: Asked) -> None:
        """Nobody waits for the answer to *call* any more; *on_abandoned* is told. Its hooks are run all the
        same. Nothing happens if it has been answered."""
        if call.wanted and call.id in self._calls:
            call.task, call.wanted = None, False
            if self._on_abandoned is not None:
                self._on_abandoned(call.id)

    def post(self, message: Request[Message], apply: Applied | None = None) -> None:
        """Ask without waiting; *apply* is run with the reply when it arrives. An errno in reply is logged,
        the end of the session goes unnoticed here."""
        if self._lost is None:
            self._ask(message, b"", None, apply, None)

    def _ask(
        self,
        message: Message,
        payload: Payload,
        task: trio.lowlevel.Task | None,
        apply: Applied | None,
        failed: Failed | None,
    ) -> Asked:
        number, frame = self._exchange.request(message, payload)
        self._trace("ask", number, message)
        call = self._calls[number] = Asked(
            number, message, payload, task, apply, failed, posted=task is None and failed is None
        )
        call.frame = self._transmit(frame)
        return call

    # --- answering ---

    def reply(self, number: RequestId, message: Message, payload: Payload = b"") -> None:
        """Answer a request of the peer's. Does nothing when the session is over."""
        if self._lost is None:
            self._trace("answer", number, message)
            self._transmit(self._exchange.reply(number, message, payload))

    def fail(self, number: RequestId, errno: int, detail: str = "") -> None:
        """Answer a request of the peer's with an errno."""
        if self._lost is None:
            self._transmit(self._exchange.fail(number, errno, detail))

    def fail_if_unanswered(self, number: RequestId, errno: int) -> None:
        """Answer a request of the peer's with an errno, unless it has its answer."""
        if self._lost is None and self._exchange.is_answering(number):
            self._transmit(self._exchange.fail(number, errno, ""))

    def _trace(self, what: str, number: RequestId, message: object) -> None:
        if self._tracing:
            log.debug("%s %d %s", what, number, message)

    # --- sending ---

    async def writable(self) -> None:
        """Wait while too much is queued for sending; not longer than the connection lasts."""
        if self._link is not None:
            await self._link.writable()

    def _transmit(self, frame: Outgoing) -> int:
        """Send now, or with the next connection; the frame's number."""
        header, payload = frame
        number = self._sequence.send(header, payload, self._clock())
        if self._link is not None:
            self._transmitted = number
            prefix = frame_prefix(header, len(payload), self._sequence.tell())
            self._link.send([prefix, payload] if len(payload) else [prefix])
        return number

    def check(self) -> None:
        """Assert the invariants."""
        self._sequence.check()
        self._exchange.check()
        assert self._transmitted <= self._sequence.sent


def _reason(link: Link, failures: list[ConnectionLost | ProtocolError]) -> ConnectionLost | ProtocolError:
    """Of several. What is wrong comes first; then who sends, who knows the reason better than the reader."""
    for failure in failures:
        if isinstance(failure, ProtocolError):
            return failure
    return failures[0] if link.failure is None else link.failure.alone()


async def _until_over(
    work: Callable[[], Awaitable[None]],
    failures: list[ConnectionLost | ProtocolError],
    connection: trio.CancelScope,
) -> None:
    # Both tasks may meet the end. The first one's reason is kept, here rather than in an exception group.
    try:
        await work()
    except (ConnectionLost, ProtocolError) as exc:
        failures.append(exc)
    connection.cancel()
