"""The frames of one session in one direction and the other, over any number of connections: a pure machine.

Each side numbers the frames it sends and keeps them until the peer has acknowledged them; it counts the frames
it has received, and every frame it sends tells that count. When a connection has ended, the next one begins
with a greeting in which each side tells its count; each then drops what the other has, sends the rest again
in the old order, and goes on. So every frame is applied exactly once and in order, wherever connections were
cut: a retried create or append cannot be done twice, and a recall never overtakes its grant.

It is to this protocol what sessions are to NFSv4.1 (RFC 8881, 2.10). There a session has slots, each with one
request at a time and its cached reply, so that order exists within a slot only, callbacks are a sequence of
their own, and the client has to sort out which came first (2.10.6.3). Here one sequence carries both
directions' requests and replies, as the token rules need the order of grants and recalls: what TCP gives
within one connection, carried on over several. The price is that a frame is kept until it is acknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.framing import Payload
from nfsfuse.protocol.limits import ACKNOWLEDGE_BYTES, ACKNOWLEDGE_FRAMES


class Kept(NamedTuple):
    """A frame that the peer may not have, of *size* bytes. *sent_at* is when it was first handed over for
    sending, in the caller's clock."""

    header: bytes
    payload: Payload
    size: int
    sent_at: float


class FrameSequence:
    """What was sent and received. Frames are numbered from 1."""

    def __init__(self) -> None:
        self.sent = 0
        self.acknowledged = 0
        """Of what was sent, so many frames have been received by the peer."""
        self.received = 0
        self.kept_bytes = 0
        self._kept: deque[Kept] = deque()
        self._told = 0  # of what was received, so many frames the peer was told of
        self._untold_bytes = 0

    # --- sending ---

    def send(self, header: bytes, payload: Payload, now: float) -> int:
        """One more frame is to be sent; its number. *payload* must not change until it is acknowledged."""
        assert header, "an empty frame is an acknowledgement"
        size = len(header) + len(payload)
        self.sent += 1
        self._kept.append(Kept(header, payload, size, now))
        self.kept_bytes += size
        return self.sent

    def unacknowledged(self) -> Iterator[Kept]:
        """What has to be sent again over a new connection, in order."""
        return iter(self._kept)

    def acknowledge(self, count: int) -> float | None:
        """The peer has received *count* frames: when the newest of those that this tells of was sent, None if
        it tells nothing new. Raises ProtocolError for what was never sent, or was taken back."""
        if count == self.acknowledged:
            return None
        if not self.acknowledged < count <= self.sent:
            raise ProtocolError(
                f"{count} frames acknowledged, of {self.sent} sent and {self.acknowledged} acknowledged before"
            )
        for _ in range(count - self.acknowledged):
            frame = self._kept.popleft()
            self.kept_bytes -= frame.size
        self.acknowledged = count
        return frame.sent_at

    # --- receiving ---

    def receive(self, size: int) -> None:
        """A numbered frame of *size* bytes has been received, and is about to be applied."""
        self.received += 1
        self._untold_bytes += size

    def tell(self) -> int:
        """The count that the frame now being sent tells the peer."""
        self._told = self.received
        self._untold_bytes = 0
        return self.received

    def owes_acknowledgement(self) -> bool:
        """Whether the peer keeps so much for want of an acknowledgement that one is to be sent by itself."""
        return (
            self._untold_bytes >= ACKNOWLEDGE_BYTES or self.received - self._told >= ACKNOWLEDGE_FRAMES
        )

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self.acknowledged <= self.sent
        assert 0 <= self._told <= self.received
        assert len(self._kept) == self.sent - self.acknowledged
        assert self.kept_bytes == sum(frame.size for frame in self._kept)
        times = [frame.sent_at for frame in self._kept]
        assert times == sorted(times)
