"""A connection that is running: an `Exchange` over a `ByteStream`.

One task reads. Every event is applied synchronously in the order received: an incoming request is handed to
*on_request* (which may start a task, but decides before it returns), a reply first runs the hook of its call
and then wakes the caller. Sending never waits: what the socket does not take at once is queued in order and
sent by a second task; who produces much waits in `writable` first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar, cast

import outcome
import trio

from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.framing import FrameReader
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.types import RequestId
from nfsfuse.rpc.exchange import Exchange, FailureArrived, Payload, ReplyArrived, RequestArrived
from nfsfuse.rpc.streams import IOVEC_COUNT_MAX, ByteStream, ConnectionLost

log = logging.getLogger(__name__)

QUEUED_BYTES_MAX: Final = 8 << 20
"""Bytes queued for sending above which `writable` waits: two of the largest frames each way."""

R = TypeVar("R", bound=Message)
Applied = Callable[[Message, bytes | bytearray], None]
Failed = Callable[[FsError | ConnectionLost], None]


@dataclass(slots=True)
class _Call:
    """A request of ours that is not answered yet. *task* is None once its caller has given up, and if there
    never was one: then *posted* is what was asked."""

    task: trio.lowlevel.Task | None
    apply: Applied | None
    failed: Failed | None = None
    posted: Message | None = None


class Channel:
    """Requests in both directions over one stream, from `run` until the stream ends."""

    def __init__(
        self,
        stream: ByteStream,
        exchange: Exchange,
        on_request: Callable[[RequestArrived], None],
        on_abandoned: Callable[[RequestId], None] | None = None,
    ) -> None:
        self._stream = stream
        self._exchange = exchange
        self._on_request = on_request
        self._on_abandoned = on_abandoned
        self._reader = FrameReader()
        self._calls: dict[RequestId, _Call] = {}
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._more_to_send = trio.Event()
        self._drained = trio.Event()
        self._lost: str | None = None
        self._tracing = log.isEnabledFor(logging.DEBUG)  # asked once: it is on the path of every message
        self._failure: ConnectionLost | ProtocolError | None = None  # the first that was met
        self.frames_sent = -1  # the greeting is none
        self.frames_received = 0
        self._transmit([MAGIC])

    @property
    def lost(self) -> str | None:
        """Why the connection is over, None while it is not."""
        return self._lost

    # --- running ---

    async def run(self) -> None:
        """Serve the connection until it ends. Returns when the peer closed it between two frames; raises
        ConnectionLost or ProtocolError otherwise. All calls still waiting then raise ConnectionLost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_over, self._send_queued, nursery.cancel_scope)
                await self._until_over(self._receive, nursery.cancel_scope)
        finally:
            self._end("closed" if self._failure is None else str(self._failure))
        if self._failure is not None:
            raise self._failure

    async def _until_over(self, work: Callable[[], Awaitable[None]], connection: trio.CancelScope) -> None:
        # Both tasks may meet the end. The first one's reason is kept, here rather than in an exception group.
        try:
            await work()
        except (ConnectionLost, ProtocolError) as exc:
            self._failure = self._failure or exc
        connection.cancel()

    async def _receive(self) -> None:
        while True:
            count = await self._stream.receive_into(self._reader.buffer())
            if count == 0:
                if not self._reader.at_boundary():
                    # A killed peer's kernel ends the stream anywhere: nothing the peer did wrong.
                    raise ConnectionLost("the stream ended inside a frame")
                return
            for frame in self._reader.received(count):
                self.frames_received += 1
                self._apply(self._exchange.received(frame))

    def _apply(self, event: RequestArrived | ReplyArrived | FailureArrived) -> None:
        if self._tracing:
            log.debug("got %s", event if len(getattr(event, "payload", b"")) <= 64 else type(event))
        if isinstance(event, RequestArrived):
            self._on_request(event)
            return
        call = self._calls[event.id]
        if isinstance(event, ReplyArrived):
            if call.apply is not None:
                call.apply(event.message, event.payload)
            result: outcome.Outcome[object] = outcome.Value((event.message, event.payload))
        else:
            failure = FsError(event.errno, event.detail)
            if call.failed is not None:
                call.failed(failure)
            if call.posted is not None:
                log.warning("the peer failed %s: %s", call.posted, failure)
            result = outcome.Error(failure)
        del self._calls[event.id]  # after the hook: if that fails, the end of the run tells the caller
        if call.task is not None:
            trio.lowlevel.reschedule(call.task, result)

    def close(self) -> None:
        """End the connection now."""
        self._stream.close()

    def _end(self, why: str) -> None:
        self._lost = why
        self._stream.close()
        self._queue.clear()
        self._queued_bytes = 0
        self._drained.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.failed is not None:
                call.failed(ConnectionLost(why))
            if call.task is not None:
                trio.lowlevel.reschedule(call.task, outcome.Error(ConnectionLost(why)))

    # --- asking ---

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Applied | None = None,
        failed: Failed | None = None,
    ) -> tuple[R, bytes | bytearray]:
        """Ask, and wait for the reply and its payload.

        *apply* is run with them synchronously when they arrive, before anything later on the connection is
        looked at, and also when the caller was cancelled meanwhile; *failed* likewise with what the call
        raises instead. A cancelled caller stops waiting at once, and *on_abandoned* is told. Raises FsError
        for an errno, ConnectionLost.
        """
        if self._lost is not None:
            if failed is not None:
                failed(ConnectionLost(self._lost))
            await trio.lowlevel.checkpoint()
            raise ConnectionLost(self._lost)
        number, frame = self._exchange.request(message, payload)
        self._trace("ask", number, message)
        call = _Call(trio.lowlevel.current_task(), apply, failed)
        self._calls[number] = call
        self._transmit(frame)

        def abandon(_: object) -> trio.lowlevel.Abort:
            call.task = None
            if self._on_abandoned is not None and self._lost is None:
                self._on_abandoned(number)
            return trio.lowlevel.Abort.SUCCEEDED

        reply = await trio.lowlevel.wait_task_rescheduled(abandon)
        return cast("tuple[R, bytes | bytearray]", reply)

    def post(self, message: Request[Message], apply: Applied | None = None) -> None:
        """Ask without waiting; *apply* is run with the reply when it arrives. An errno in reply is logged,
        the loss of the connection goes unnoticed here."""
        if self._lost is None:
            number, frame = self._exchange.request(message)
            self._trace("ask", number, message)
            self._calls[number] = _Call(None, apply, posted=message)
            self._transmit(frame)

    # --- answering ---

    def reply(self, number: RequestId, message: Message, payload: Payload = b"") -> None:
        """Answer a request of the peer's. Does nothing when the connection is over."""
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
        """Wait while too much is queued for sending."""
        while self._queued_bytes > QUEUED_BYTES_MAX and self._lost is None:
            if self._drained.is_set():  # else others wait for it already
                self._drained = trio.Event()
            await self._drained.wait()

    def _transmit(self, frame: list[Payload]) -> None:
        self.frames_sent += 1
        if self._queue:
            self._enqueue([memoryview(part) for part in frame])
            return
        try:
            sent = self._stream.try_send(frame)
        except ConnectionLost as exc:
            # The reader meets the end too and ends the run, but perhaps without the reason: the kernel
            # reports an error of a socket only once.
            self._failure = self._failure or exc
            return
        if sent < sum(map(len, frame)):
            self._enqueue(_after([memoryview(part) for part in frame], sent))

    def _enqueue(self, views: list[memoryview]) -> None:
        self._queue.extend(views)
        self._queued_bytes += sum(map(len, views))
        self._more_to_send.set()

    async def _send_queued(self) -> None:
        while True:
            await self._more_to_send.wait()
            self._more_to_send = trio.Event()
            while self._queue:
                await self._stream.wait_sendable()
                self._sent(self._stream.try_send(list(islice(self._queue, IOVEC_COUNT_MAX))))

    def _sent(self, count: int) -> None:
        self._queued_bytes -= count
        while count > 0:
            first = self._queue.popleft()
            if count < len(first):
                self._queue.appendleft(first[count:])
                break
            count -= len(first)
        if self._queued_bytes <= QUEUED_BYTES_MAX:
            self._drained.set()


def _after(views: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of *views* when the first *sent* bytes are gone."""
    rest = []
    for view in views:
        if sent < len(view):
            rest.append(view[sent:])
            sent = 0
        else:
            sent -= len(view)
    return rest
