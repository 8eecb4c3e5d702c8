"""Two shipping channels and a line between them that may be cut at any moment, any number of times.

Each side asks and answers in its own time. A frame is on the line until it arrives; a cut loses what is on the
line to the client, which knows at once, and what is on the line to the server arrives late or never, but not
after the server has greeted the next connection.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from nfsfuse.protocol.framing import Frame
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.protocol.messages import Message, ReadLink, Recall, Recalled, Target
from nfsfuse.protocol.tokens import Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, RequestId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange, RequestArrived
from nfsfuse.rpc.streams import Buffer
from tests.helpers.frames import frames_in


class Line(Enum):
    """The connection, if there is one."""

    CUT = "there is none"
    HELLO = "the client has said hello"
    WELCOME = "the server has answered, and serves it"
    CONNECTED = "both serve it"


@dataclass(eq=False)
class _Link:
    """An end of a connection: what `Channel` needs of a link."""

    frames: list[Frame]
    closed: bool = False

    def send(self, parts: Sequence[Buffer]) -> None:
        if not self.closed:
            self.frames += frames_in(MAGIC + b"".join(map(bytes, parts)))

    def close(self) -> None:
        self.closed = True


class Side:
    """One end of the session: what it has sent, in order, and what of the other's has had its effect here."""

    def __init__(self, asks: Callable[[int], Message], may_ask_us: type[Message], to_ask: int) -> None:
        self.asks = asks
        self.to_ask = to_ask
        self.asked = 0
        self.owed: list[tuple[RequestId, Message]] = []
        self.sent: list[str] = []
        self.seen: list[str] = []
        self.channel = Channel(Exchange(frozenset({may_ask_us})), self._arrived, clock=_no_time)

    def ask(self) -> None:
        self.asked += 1
        message = self.asks(self.asked)
        self.sent.append(f"asked {message}")
        self.channel.post(message, self._answered)  # type: ignore[arg-type]

    def _arrived(self, event: RequestArrived) -> None:
        self.seen.append(f"asked {event.message}")
        self.owed.append((event.id, event.message))

    def answer(self, which: int) -> None:
        number, message = self.owed.pop(which)
        reply = Recalled(()) if isinstance(message, Recall) else Target(str(message).encode())
        self.sent.append(f"answered {reply}")
        self.channel.reply(number, reply)

    def _answered(self, reply: Message, _: bytes | bytearray) -> None:
        self.seen.append(f"answered {reply}")

    def mark(self) -> Hashable:
        sequence = self.channel._sequence
        counts = sequence.sent, sequence.acknowledged, sequence.received, sequence._told
        return counts, tuple(self.sent), len(self.seen), tuple(number for number, _ in self.owed)


def _no_time() -> float:
    return 0.0


def _read_link(number: int) -> Message:
    return ReadLink(InodeHandle(b"%d" % number))


def _recall(number: int) -> Message:
    return Recall(Token(InodeHandle(b"%d" % number), Resource.DATA, 0, 1, TokenMode.NONE))


@dataclass
class Channels:
    """A client that asks *requests*, a server that recalls *recalls*."""

    requests: int
    recalls: int
    line: Line = Line.CUT
    up: list[Frame] = field(default_factory=list)
    down: list[Frame] = field(default_factory=list)
    counts: int = 0  # the frames that who says hello, or welcome, has received

    def __post_init__(self) -> None:
        self.client = Side(_read_link, Recall, self.requests)
        self.server = Side(_recall, ReadLink, self.recalls)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = []
        for name, side in (("client", self.client), ("server", self.server)):
            if side.asked < side.to_ask:
                found.append((f"the {name} asks", side.ask))
            for which in range(len(side.owed)):
                found.append((f"the {name} answers {which}", lambda side=side, which=which: side.answer(which)))
        if self.up:
            found.append(("the server gets a frame", self._up))
        if self.down and self.line is Line.CONNECTED:
            found.append(("the client gets a frame", self._down))
        match self.line:
            case Line.CUT:
                found.append(("the client says hello", self._hello))
            case Line.HELLO:
                found.append(("the server says welcome", self._welcome))
            case Line.WELCOME:
                found.append(("the client is welcome", self._connected))
            case Line.CONNECTED:
                found += [(f"the {name} acknowledges", step) for name, step in self._acknowledgements()]
        if self.line is not Line.CUT:
            found.append(("the connection is cut", self._cut))
        return found

    def _acknowledgements(self) -> list[tuple[str, Callable[[], None]]]:
        sides = (("client", self.client, self.up), ("server", self.server, self.down))
        return [
            (name, lambda side=side, line=line: line.append(Frame(b"", b"", side.channel._sequence.tell())))
            for name, side, line in sides
            if side.channel._sequence._told < side.channel._sequence.received
        ]

    def _up(self) -> None:
        self.server.channel._arrived(self.up.pop(0))

    def _down(self) -> None:
        self.client.channel._arrived(self.down.pop(0))

    def _hello(self) -> None:
        self.counts = self.client.channel.frames_received
        self.line = Line.HELLO

    def _welcome(self) -> None:
        received = self.server_tells()
        self.up.clear()  # of the connection before
        self.server.channel.attach(_Link(self.down), self.counts)  # type: ignore[arg-type]
        self.counts = received
        self.line = Line.WELCOME

    def server_tells(self) -> int:
        """How many frames it has received."""
        return self.server.channel.frames_received

    def _connected(self) -> None:
        self.client.channel.attach(_Link(self.up), self.counts)  # type: ignore[arg-type]
        self.line = Line.CONNECTED

    def _cut(self) -> None:
        self.client.channel.disconnect()
        if self.line is not Line.HELLO:  # else the server has not noticed that there was a connection
            self.server.channel.disconnect()
        self.down.clear()
        self.line = Line.CUT

    def check(self) -> None:
        for side, other in ((self.client, self.server), (self.server, self.client)):
            side.channel.check()
            assert other.seen == side.sent[: len(other.seen)], "each once, and in order"

    def mark(self) -> Hashable:
        on_line = tuple(tuple((f.header, f.received) for f in line) for line in (self.up, self.down))
        counts = self.counts if self.line in (Line.HELLO, Line.WELCOME) else None
        return self.line, counts, on_line, self.client.mark(), self.server.mark()
