"""Byte streams: what a channel needs of a transport, and sockets that offer it.

The interface is readiness-based rather than trio's `SendStream`: what the socket takes at once is sent
without a task switch, and file data is received straight into its buffer.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final, Protocol

import trio

Buffer = bytes | bytearray | memoryview

IOVEC_COUNT_MAX: Final = 64
"""Buffers in one sendmsg(2): far below IOV_MAX (1024), and more gains nothing measurable."""

RECEIVES_WITHOUT_YIELD_MAX: Final = 8
"""Successive receives of a busy stream before other tasks get a turn."""


class ConnectionLost(Exception):
    """The stream has ended or broken; what was asked over it may or may not have been done."""


class ByteStream(Protocol):
    """A connected, bidirectional stream of bytes. Its methods raise ConnectionLost once it is broken."""

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        """Send what can be sent at once; the number of bytes sent, 0 if none."""

    async def wait_sendable(self) -> None:
        """Return when `try_send` may send something."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; 0 at the end of the stream."""

    def close(self) -> None:
        """End it; idempotent. Tasks waiting in it raise ConnectionLost."""


class SocketByteStream:
    """A connected TCP or Unix stream socket, which this object owns from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Requests are small and waited for: Nagle's algorithm would hold them back.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = sock
        self._receives_at_once = 0

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._socket.sendmsg(buffers[:IOVEC_COUNT_MAX])
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise ConnectionLost(_why(exc)) from exc

    async def wait_sendable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError) as exc:
            raise ConnectionLost("closed") from exc

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            if self._receives_at_once >= RECEIVES_WITHOUT_YIELD_MAX:
                self._receives_at_once = 0
                await trio.lowlevel.checkpoint()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                pass
            except OSError as exc:
                raise ConnectionLost(_why(exc)) from exc
            else:
                self._receives_at_once += 1
                return count
            self._receives_at_once = 0
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except (trio.ClosedResourceError, OSError) as exc:
                raise ConnectionLost("closed") from exc

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _why(exc: OSError) -> str:
    if exc.errno == errno.EBADF:
        return "closed"
    return exc.strerror or str(exc)
