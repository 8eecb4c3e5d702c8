"""The process of `scripts.rig.proxy`: passes connections on to a server, and spoils them as it is told.

Commands come line by line on the standard input, each is answered with one line when it is carried out; the
end of the input is the end of the process. The vocabulary is in `proxy.py`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Final

import trio

from nfsfuse.rpc.address import connect, parse_address

CHUNK_SIZE: Final = 64 * 1024

CHUNKS_MAX: Final = 64
"""Chunks on their way in one direction of a connection, 4 MiB: whoever sends more has to wait."""

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Direction:
    """What becomes of bytes that go up (to the server) or down, on all connections alike. *mode*: ``pass``;
    ``stall``, they arrive when it is over, as after an outage that TCP survives; ``swallow``, they never do,
    though they seem to: the other end is gone without a word."""

    mode: str = "pass"
    delay_seconds: float = 0.0
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def passable(self) -> bool:
        """Wait while it is stalled; whether bytes go through."""
        while self.mode == "stall":
            await self.changed.park()
        return self.mode == "pass"


class Link:
    """One connection, and the one to the server for it."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self._ends = (near, far)
        self._scope = trio.CancelScope()
        self._reset = False

    async def run(self, up: Direction, down: Direction) -> None:
        """Pass bytes on until both ends have closed, one has been reset, or `cut`."""
        near, far = self._ends
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    for direction, source, target in ((up, near, far), (down, far, near)):
                        sending, receiving = trio.open_memory_channel[tuple[float, bytes]](CHUNKS_MAX)
                        nursery.start_soon(self._take, direction, source, sending)
                        nursery.start_soon(self._give, direction, receiving, target)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                self._reset = True  # as the one end was, so shall the other be
        for end in self._ends:
            if self._reset:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            end.socket.close()

    def cut(self, *, reset: bool) -> None:
        """End it now, at both ends: what is on its way is lost."""
        self._reset = reset
        self._scope.cancel()

    @staticmethod
    async def _take(
        direction: Direction, source: trio.SocketStream, sending: trio.MemorySendChannel[tuple[float, bytes]]
    ) -> None:
        async with sending:
            while data := await source.receive_some(CHUNK_SIZE):
                await sending.send((trio.current_time() + direction.delay_seconds, bytes(data)))

    @staticmethod
    async def _give(
        direction: Direction,
        receiving: trio.MemoryReceiveChannel[tuple[float, bytes]],
        target: trio.SocketStream,
    ) -> None:
        async for due, data in receiving:
            await trio.sleep_until(due)
            if await direction.passable():
                await target.send_all(data)
        if await direction.passable():
            await target.send_eof()


class Proxy:
    """The listener, its links, and what is done to them."""

    def __init__(self, server: str, nursery: trio.Nursery) -> None:
        self._server = parse_address(server)
        self._nursery = nursery
        self._links: set[Link] = set()
        self._accepting = trio.CancelScope()
        self._port = 0
        self._directions = {"up": Direction(), "down": Direction()}
        self.accepted = 0

    async def listen(self) -> int:
        """Accept connections; the port, which stays the same."""
        found = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._port = found[0].socket.getsockname()[1]
        self._accepting = trio.CancelScope()
        self._nursery.start_soon(self._accept, found[0], self._accepting)
        return self._port

    async def _accept(self, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        with scope:
            async with listener:
                while True:
                    self._nursery.start_soon(self._serve, await listener.accept())

    async def _serve(self, near: trio.SocketStream) -> None:
        self.accepted += 1
        try:
            far = trio.SocketStream(trio.socket.from_stdlib_socket(await connect(self._server)))
        except OSError:  # no server: as if it had been asked itself
            near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            near.socket.close()
            return
        link = Link(near, far)
        self._links.add(link)
        try:
            await link.run(self._directions["up"], self._directions["down"])
        finally:
            self._links.discard(link)

    async def carry_out(self, words: list[str]) -> str:
        """One command; the answer."""
        match words:
            case ["pass" | "stall" | "swallow" as mode, *which]:
                for name in which or self._directions:
                    self._directions[name].mode = mode
                    self._directions[name].changed.unpark_all()
            case ["delay", seconds, *which]:
                for name in which or self._directions:
                    self._directions[name].delay_seconds = float(seconds)
            case ["cut", "rst" | "fin" as how]:
                for link in self._links:
                    link.cut(reset=how == "rst")
            case ["refuse"]:
                self._accepting.cancel()
            case ["accept"]:
                await self.listen()
            case ["status"]:
                return json.dumps({"accepted": self.accepted, "links": len(self._links)})
            case _:
                return f"unknown: {' '.join(words)}"
        return "done"


async def main(server: str) -> None:
    """Serve until the end of the input."""
    async with trio.open_nursery() as nursery:
        proxy = Proxy(server, nursery)
        print(await proxy.listen(), flush=True)
        pending = b""
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as commands:
            async for received in commands:
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    print(await proxy.carry_out(line.decode().split()), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        trio.run(main, sys.argv[1])
