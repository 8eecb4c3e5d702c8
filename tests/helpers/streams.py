"""An in-memory pair of `nfsfuse.rpc.streams.ByteStream`, for trio's clock: bounded, delayed, closed, cut.

Like a socket pair: what one end has sent is still received after it was closed, and then the end of the
stream; sending to an end that is closed is ConnectionLost. `MemoryByteStream.cut` is a cable pulled out:
both ends raise ConnectionLost at once, and what was under way is gone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import trio

from nfsfuse.rpc.streams import Buffer, ConnectionLost


class _Direction:
    """Bytes under way from one end to the other, at most *capacity* of them."""

    def __init__(self, capacity: int, delay_seconds: float | Callable[[], float]) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self.delay_seconds = delay_seconds
        self.chunks: deque[tuple[float, memoryview]] = deque()  # when it arrives, what
        self.held = 0
        self.changed = trio.lowlevel.ParkingLot()

    def put(self, buffers: Sequence[Buffer]) -> int:
        delay = self.delay_seconds() if callable(self.delay_seconds) else self.delay_seconds
        arrives = trio.current_time() + delay  # a later one that arrives earlier waits for those before it
        before = self.held
        for buffer in buffers:
            taken = bytes(buffer[: self.capacity - self.held])
            if taken:
                self.chunks.append((arrives, memoryview(taken)))
                self.held += len(taken)
        self.changed.unpark_all()
        return self.held - before

    def take(self, buffer: memoryview) -> int:
        count = 0
        while count < len(buffer) and self.next_arrival() <= trio.current_time():
            arrives, chunk = self.chunks.popleft()
            part = chunk[: len(buffer) - count]
            buffer[count : count + len(part)] = part
            count += len(part)
            if len(part) < len(chunk):
                self.chunks.appendleft((arrives, chunk[len(part) :]))
        self.held -= count
        self.changed.unpark_all()
        return count

    def next_arrival(self) -> float:
        return self.chunks[0][0] if self.chunks else math.inf

    def drop(self) -> None:
        self.chunks.clear()
        self.held = 0


class MemoryByteStream:
    """One end of a pair made by `memory_stream_pair`."""

    def __init__(self, outgoing: _Direction, incoming: _Direction) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._over: str | None = None
        self.peer: MemoryByteStream = self  # set by memory_stream_pair
        self.bytes_sent = 0
        self.cut_after: int | None = None
        """So many more bytes go through before the connection is cut, perhaps in the middle of a frame."""

    @property
    def closed(self) -> bool:
        """Whether this end was closed or cut."""
        return self._over is not None

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        self._check()
        if self.peer.closed:
            raise ConnectionLost("broken pipe")
        if self.cut_after is not None:
            buffers = [b"".join(map(bytes, buffers))[: self.cut_after]]
        count = self._outgoing.put(buffers)
        self.bytes_sent += count
        if self.cut_after is not None:
            self.cut_after -= count
            if self.cut_after == 0:
                self.cut("cut in the middle")
        return count

    async def wait_sendable(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        while self._outgoing.held == self._outgoing.capacity and not self.peer.closed:
            await self._outgoing.changed.park()
            self._check()

    async def receive_into(self, buffer: memoryview) -> int:
        assert len(buffer) > 0, "a receive of nothing looks like the end of the stream"
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if (count := self._incoming.take(buffer)) > 0:
                return count
            if self.peer.closed and not self._incoming.chunks:
                return 0
            with trio.move_on_at(self._incoming.next_arrival()):
                await self._incoming.changed.park()

    def close(self) -> None:
        if self._over is None:
            self._over = "closed"
            self._incoming.drop()
            self._wake()

    def cut(self, why: str = "cut") -> None:
        """Break the connection: nothing under way arrives, both ends raise ConnectionLost(*why*)."""
        for end in (self, self.peer):
            end._over = end._over or why
            end._incoming.drop()
        self._wake()

    def receives_after(self, delay_seconds: float) -> None:
        """What the other end sends from now on takes so long."""
        self._incoming.delay_seconds = delay_seconds

    def sends_nothing(self) -> None:
        """What this end sends from now on never arrives, and it is not told."""
        self._outgoing.delay_seconds = math.inf

    def swallow(self) -> None:
        """From now on nothing arrives, in either direction, and neither end is told (half open)."""
        for direction in (self._outgoing, self._incoming):
            direction.delay_seconds = math.inf

    def _check(self) -> None:
        if self._over is not None:
            raise ConnectionLost(self._over)

    def _wake(self) -> None:
        self._outgoing.changed.unpark_all()
        self._incoming.changed.unpark_all()


def memory_stream_pair(
    capacity: int = 65536,
    *,
    there_seconds: float | Callable[[], float] = 0.0,
    back_seconds: float | Callable[[], float] = 0.0,
) -> tuple[MemoryByteStream, MemoryByteStream]:
    """Two connected ends. Each direction holds at most *capacity* bytes that are not yet received; what the
    first end sends arrives *there_seconds* of trio's time later, what the second sends *back_seconds*
    (or what these draw for every send; the order stays)."""
    there, back = _Direction(capacity, there_seconds), _Direction(capacity, back_seconds)
    first, second = MemoryByteStream(there, back), MemoryByteStream(back, there)
    first.peer, second.peer = second, first
    return first, second
