"""Addresses: what is understood, what is refused with a sentence, and connecting to them."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio

from nfsfuse.rpc.address import Address, TcpAddress, UnixAddress, connect, parse_address

UNDERSTOOD = {
    "127.0.0.1:7209": TcpAddress("127.0.0.1", 7209),
    "server.example:1": TcpAddress("server.example", 1),
    "localhost:0": TcpAddress("localhost", 0),
    "host:65535": TcpAddress("host", 65535),
    "[::1]:7209": TcpAddress("::1", 7209),
    "[fe80::1%eth0]:80": TcpAddress("fe80::1%eth0", 80),
    "unix:/run/nfsfuse.sock": UnixAddress("/run/nfsfuse.sock"),
    "unix:relative:with:colons": UnixAddress("relative:with:colons"),
}

REFUSED = [
    "", ":", "host", "host:", ":7209", "[]:7209", "host:65536", "host:-1", "host:+1", "host: 1", "host:1 ",
    "host:1_0", "host:http", "host:\N{SUPERSCRIPT TWO}", "host:\N{ARABIC-INDIC DIGIT ONE}",
    "host:" + "9" * 5000,
    "::1", "::1:7209", "fe80::1", "[::1]", "[::1", "[::1:7209", "::1]:7209", "unix:",
]  # fmt: skip


@pytest.mark.parametrize(("text", "address"), UNDERSTOOD.items())
def test_an_address_and_its_text_are_the_same(text: str, address: Address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_address_is_refused_with_what_to_give(text: str):
    with pytest.raises(ValueError, match=r"give|needs"):
        parse_address(text)


def free_port(family: socket.AddressFamily, host: str) -> int:
    """A port on which nobody listens: bound and given back."""
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        free_port(socket.AF_INET6, "::1")
    except OSError as exc:
        if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        return False
    return True


PLACES = {
    "ipv4": (socket.AF_INET, ("127.0.0.1", 0)),
    "ipv6": (socket.AF_INET6, ("::1", 0)),
    "unix": (socket.AF_UNIX, "socket"),
}


@pytest.mark.parametrize(("family", "place"), PLACES.values(), ids=PLACES.keys())
async def test_connect(family, place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("no IPv6 here")
    monkeypatch.chdir(tmp_path)
    with socket.socket(family) as listener:
        listener.bind(place)
        listener.listen()
        name = listener.getsockname()
        address = UnixAddress(name) if family == socket.AF_UNIX else TcpAddress(*name[:2])
        with await connect(address) as client:
            served, _ = listener.accept()
            with served:
                client.setblocking(True)
                served.sendall(b"hello")
                assert client.recv(5, socket.MSG_WAITALL) == b"hello"


async def test_refused_and_missing_are_os_errors(tmp_path: Path):
    with pytest.raises(ConnectionRefusedError):
        await connect(TcpAddress("127.0.0.1", free_port(socket.AF_INET, "127.0.0.1")))
    with pytest.raises(FileNotFoundError):
        await connect(UnixAddress(str(tmp_path / "nothing")))
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        await connect(UnixAddress("x" * 200))


async def test_every_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch):
    closed = free_port(socket.AF_INET, "127.0.0.1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
            for port in (closed, listener.getsockname()[1])
        ]

        class Resolver(trio.abc.HostnameResolver):
            async def getaddrinfo(self, *_: object, **__: object):  # type: ignore[no-untyped-def, override]
                return found

            async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def, override]
                raise AssertionError("nobody asks for names")

        previous = trio.socket.set_custom_hostname_resolver(Resolver())
        try:
            with await connect(TcpAddress("two.example", 1)) as client:
                assert client.getpeername() == listener.getsockname()
            found.pop()
            with pytest.raises(ConnectionRefusedError):
                await connect(TcpAddress("two.example", 1))
        finally:
            trio.socket.set_custom_hostname_resolver(previous)
