"""Byte streams: what a channel needs of a transport, and sockets that offer it.

The interface is readiness-based rather than trio's `SendStream`: what the socket takes at once is sent
without a task switch, and file data is received straight into its buffer.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

Buffer = bytes | bytearray | memoryview

IOVEC_COUNT_MAX: Final = 64
"""Buffers in one sendmsg(2): far below IOV_MAX (1024), and more gains nothing measurable."""

RECEIVES_WITHOUT_YIELD_MAX: Final = 8
"""Successive receives of a busy stream before other tasks get a turn."""


KEEPALIVE_SECONDS: Final = 10
"""Of silence until TCP asks whether the peer is there, and between its questions."""

UNACKNOWLEDGED_SECONDS_MAX: Final = 30
"""How long what was sent (data, or such a question) may stay without TCP's acknowledgement: three leases."""


class ConnectionLost(Exception):
    """The stream has ended or broken, or with it the session: then what was asked may or may not have been
    done."""

    def alone(self) -> ConnectionLost:
        """As `FsError.alone`."""
        return ConnectionLost(*self.args)


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
            # Heartbeats find a half-open connection long before; this ends it where nobody sends any.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS_MAX * 1000)
        self._socket = sock
        self._receives_at_once = 0
        self._emptied = True  # the last receive left nothing, so the next one has to wait

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        try:
            if len(buffers) == 1:  # the usual case, and send(2) is the cheaper call
                return self._socket.send(buffers[0])
            return self._socket.sendmsg(buffers[:IOVEC_COUNT_MAX])
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._break()
            raise ConnectionLost(_why(exc)) from exc

    def _break(self) -> None:
        """Let nothing follow what could not be sent (out of memory, say). What has arrived can still be
        received, and then the end."""
        with suppress(OSError):  # the peer, or a close, was first
            self._socket.shutdown(socket.SHUT_RDWR)

    async def wait_sendable(self) -> None:
        self._check_open()
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError) as exc:
            raise ConnectionLost("closed") from exc

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            if self._emptied:
                self._receives_at_once = 0
                self._check_open()
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except (trio.ClosedResourceError, OSError) as exc:
                    raise ConnectionLost("closed") from exc
            elif self._receives_at_once >= RECEIVES_WITHOUT_YIELD_MAX:
                self._receives_at_once = 0
                await trio.lowlevel.checkpoint()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._emptied = True
                continue
            except OSError as exc:
                raise ConnectionLost(_why(exc)) from exc
            # A short receive took all there was: saves the one that would only find nothing.
            self._emptied = 0 < count < len(buffer)
            self._receives_at_once += 1
            return count

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise ConnectionLost("closed")

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _why(exc: OSError) -> str:
    if exc.errno == errno.EBADF:
        return "closed"
    return exc.strerror or str(exc)
