"""A live server under garbage: each connection that sends some ends, and nobody else notices."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codec import ReplyEnvelope, RequestEnvelope, decode, encode
from nfsfuse.protocol.framing import FrameReader, frame_prefix
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, MAGIC, PAYLOAD_SIZE_MAX, PROTOCOL_VERSION
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import ClientId, Credentials, Epoch, InodeHandle, OpenId, RequestId, SessionId
from scripts.rig.processes import poll_until
from scripts.rig.rig import Rig, Server
from tests.mount.conftest import Mounts, Pair

CONNECTIONS = 120
"""Per seed; each sends a conversation of a few frames, damaged somewhere."""



@pytest.fixture(scope="module")
def mounts() -> Iterator[Mounts]:
    """A server with short leases: what a conversation takes goes with its session's."""
    with Rig() as made:
        server = made.server(arguments=["--lease", "1"])
        yield Mounts(made, server, made.mount(server), made.mount(server))


HELLO = m.Hello(
    PROTOCOL_VERSION, ClientId(b"f" * 16), SessionId(b""), Epoch(0), 0, SessionId(b""), "fuzz", ()
)


def frame(number: int, message: Message, payload: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    header = encode(RequestEnvelope(RequestId(number), message))
    return frame_prefix(header, len(payload)) + payload


def connected(server: Server) -> socket.socket:
    """A new connection to the server."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(server.address.removeprefix("unix:"))
    return client


def root_of(server: Server) -> InodeHandle:
    """Greet the server as a client does; the handle of the export's root."""
    reader = FrameReader()
    with connected(server) as client:
        client.sendall(MAGIC + frame(0, HELLO))
        while not (frames := reader.received(client.recv_into(reader.buffer()))):
            pass
    reply = decode(frames[0].header)
    assert isinstance(reply, ReplyEnvelope)
    assert isinstance(reply.message, m.Welcome)
    return reply.message.root.handle


def conversation(root: InodeHandle) -> list[bytes]:
    """What a client might say; harmless, should any of it arrive undamaged."""
    requests: list[tuple[Message, bytes]] = [
        (HELLO, b""),
        (m.GetAttr(root), b""),
        (m.Lookup(root, b"no such name"), b""),
        (m.ReadDir(root, 0, 100), b""),
        (m.Write(root, 0), b"into a directory" * 1000),
        (m.Read(root, 0, 4096, TokenMode.NONE), b""),
        (m.SetXattr(root, b"trusted", 0), b"x" * 100),
        (m.Create(root, b"a/b", 0o600, 0, Credentials(0, 0)), b""),
        (m.Release((m.Closed(OpenId(77)),)), b""),
        (m.Accessed((root,)), b""),
        (m.Heartbeat(), b""),
    ]
    return [frame(number, message, payload) for number, (message, payload) in enumerate(requests)]


def ended(server: Server) -> int:
    """How many connections the server says it has ended for what they sent."""
    return server.log.read_text().count(": connection ended: ")


def _flip(draw: random.Random, data: bytearray) -> None:
    for _ in range(draw.randrange(1, 8)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(draw: random.Random, data: bytearray) -> None:
    del data[draw.randrange(len(data)) :]


def _remove(draw: random.Random, data: bytearray) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.randrange(1, 40)]


def _insert(draw: random.Random, data: bytearray) -> None:
    start = draw.randrange(len(data))
    data[start:start] = draw.randbytes(draw.randrange(1, 40))


def _repeat(draw: random.Random, data: bytearray) -> None:
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + draw.randrange(1, 400)]


DAMAGES: tuple[Callable[[random.Random, bytearray], None], ...] = (_flip, _cut, _remove, _insert, _repeat)


def send_and_drain(server: Server, data: bytes) -> None:
    """Say *data* and nothing more, and listen until the server has ended the connection."""
    with connected(server) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # it had ended the connection before it had heard everything


@pytest.mark.parametrize("seed", range(1, 5))
def test_damaged_conversations(mounts: Mounts, pair: Pair, seed: int) -> None:
    draw = random.Random(seed)
    frames = conversation(root_of(mounts.server))
    for number in range(CONNECTIONS):
        words = [bytearray(word) for word in (MAGIC, *frames)]
        for _ in range(draw.randrange(1, 3)):
            draw.choice(DAMAGES)(draw, draw.choice([word for word in words if word]))
        if draw.random() < 0.2:
            draw.shuffle(words)
        send_and_drain(mounts.server, b"".join(words))
        if number % 10 == 0:
            path = pair.one / f"while-{number}"
            path.write_bytes(draw.randbytes(5000))
            assert (pair.two / path.name).read_bytes() == path.read_bytes()
    _unharmed(mounts, pair)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not an nfsfuse peer"),
        (MAGIC + struct.pack("<IIQ", HEADER_SIZE_MAX + 1, 0, 0), "frame too large"),
        (MAGIC + struct.pack("<IIQ", 10, PAYLOAD_SIZE_MAX + 1, 0), "frame too large"),
        (MAGIC + struct.pack("<IIQ", 10, 0, 0) + b"12345", "ended inside a frame"),
        (MAGIC + struct.pack("<IIQ", 5, 0, 0) + b"\xc1" * 5, "not msgpack"),
        (MAGIC + frame(1, m.Heartbeat()), "Heartbeat before Hello"),
        (MAGIC + frame(0, HELLO) + frame(2, HELLO), "Hello is no request of this peer's"),
        (MAGIC + struct.pack("<IIQ", 4, 0, 0) + b"\x93\x00\x00\x7f", "unknown message"),
        (MAGIC + frame(0, HELLO) + struct.pack("<IIQ", 4, 0, 0) + b"\x93\x01\x01\x00", ""),
    ],
)
def test_bad_input_ends_its_connection_with_one_line(mounts: Mounts, pair: Pair, data: bytes, why: str) -> None:
    before = ended(mounts.server)
    with (pair.one / "open").open("w") as file:
        send_and_drain(mounts.server, data)
        file.write("unharmed")
    poll_until(lambda: ended(mounts.server) > before, 10, "the server says why")
    assert ended(mounts.server) == before + 1
    assert why in mounts.server.log.read_text().rpartition(": connection ended: ")[2].splitlines()[0]
    assert (pair.two / "open").read_text() == "unharmed"
    _unharmed(mounts, pair)


def _unharmed(mounts: Mounts, pair: Pair) -> None:
    assert mounts.server.process.poll() is None, "the server died"
    log = mounts.server.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    (pair.two / "after").write_text("it goes on")
    assert (pair.one / "after").read_text() == "it goes on"
