"""One connection between a client and the server, to be explored: frames on their way, and a death of which
neither end is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nfsfuse.protocol.codec import ReplyEnvelope, RequestEnvelope, decode
from nfsfuse.protocol.framing import Frame
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.rpc.streams import Buffer, ConnectionLost
from tests.explore.runner import ParkingLot, Runner
from tests.helpers.frames import frames_in


class End:
    """What `Channel` and the greeting know of a `Link`."""

    def __init__(self, wire: Wire, outgoing: deque[Frame]) -> None:
        self._wire = wire
        self._outgoing = outgoing
        self.closed = False

    def send(self, parts: Sequence[Buffer]) -> None:
        if not (self.closed or self._wire.dead):
            self._outgoing.extend(frames_in(MAGIC + b"".join(map(bytes, parts))))

    async def flush(self) -> None:
        """It is under way already."""

    async def writable(self) -> None:
        """Nothing is ever in the way."""

    async def receive_one(self) -> Frame:
        """The answer to the greeting; ConnectionLost if it does not come any more."""
        return await self._wire.welcome()

    def close(self) -> None:
        self.closed = True


class Wire:
    """Frames from the client (*up*) and to it (*down*), in order."""

    def __init__(self, runner: Runner) -> None:
        self.up: deque[Frame] = deque()
        self.down: deque[Frame] = deque()
        self.near, self.far = End(self, self.up), End(self, self.down)
        self.dead = False
        self.said_hello = False
        """The server has its Hello."""
        self.greeted = False
        """The client has its Welcome."""
        self._changed = ParkingLot(runner)

    async def welcome(self) -> Frame:
        """The first frame down, once it is let arrive."""
        while not self.greeted:
            if self.dead:
                raise ConnectionLost("dead")
            await self._changed.park()
        return self.down.popleft()

    def let_welcome_arrive(self) -> None:
        self.greeted = True
        self._changed.unpark_all()

    def die(self) -> None:
        """What is under way is lost, and so is what is sent from now on."""
        self.dead = True
        self.up.clear()
        if not self.greeted:
            self._changed.unpark_all()
        self.down.clear()


def told(frame: Frame) -> str:
    """What *frame* is, for a story."""
    match decode(frame.header):
        case RequestEnvelope(message=message):
            return f"the {type(message).__name__}"
        case ReplyEnvelope(message=message):
            return f"the reply {type(message).__name__}"
        case failure:
            return f"the failure {failure.errno}"


def content(frame: Frame) -> tuple[object, ...]:
    """What of *frame* matters: not the number of its request, nor the counts it tells."""
    match decode(frame.header):
        case RequestEnvelope(message=message) | ReplyEnvelope(message=message):
            return (message, bytes(frame.payload))
        case failure:
            return (failure.errno,)
