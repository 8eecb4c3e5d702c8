"""Where a server listens: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``."""

from __future__ import annotations

import socket

import trio

from nfsfuse.protocol.record import record

DEFAULT_PORT = 7209
"""A number from the range that IANA leaves unassigned."""


@record(frozen=True, slots=True)
class TcpAddress:
    """A host's name or number, and a port (0 to listen on any)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@record(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """The address that *text* names. Raises ValueError with a sentence that says what is expected."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("unix: needs a path after it, as in unix:/run/nfsfuse.sock")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    # isdigit alone takes digits of other scripts too, among them some that int does not.
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address: give HOST:PORT or unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} may end with a port or with an IPv6 address: give [IPV6]:PORT")
    if not host:
        raise ValueError(f"{text!r} names no host: give HOST:PORT, as in 127.0.0.1:{port}")
    return TcpAddress(host, int(port))


async def connect(address: Address) -> socket.socket:
    """A socket connected to *address*. Raises OSError."""
    if isinstance(address, UnixAddress):
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return await _connected(unix, address.path)
    failure: OSError | None = None
    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, target in found:
        try:
            return await _connected(socket.socket(family, kind, protocol), target)
        except OSError as exc:
            failure = exc
    assert failure is not None
    try:
        raise failure
    finally:
        failure = None


async def _connected(sock: socket.socket, target: str | tuple[object, ...]) -> socket.socket:
    try:
        wrapped = trio.socket.from_stdlib_socket(sock)
        await wrapped.connect(target)
        # trio's wrapper is only needed to connect; its descriptor goes on in a plain socket.
        return socket.socket(sock.family, sock.type, sock.proto, fileno=wrapped.detach())
    except BaseException:
        sock.close()
        raise
