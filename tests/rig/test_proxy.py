"""The proxy of the rig does to connections what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scripts.rig.proxy import DOWN, UP, Proxy
from scripts.rig.rig import Rig

SECONDS_MAX = 20.0
QUIET_SECONDS = 0.3


@contextmanager
def echo() -> Iterator[str]:
    """A server that sends back what it is sent, and closes when its client does; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except ConnectionError:
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS_MAX)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Rig() as rig, echo() as address, Proxy(rig, address) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), SECONDS_MAX)


def says(connection: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        received += connection.recv(65536)
    return received


def is_quiet(connection: socket.socket) -> bool:
    connection.settimeout(QUIET_SECONDS)
    try:
        return connection.recv(1) == b"nothing"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(SECONDS_MAX)


def test_it_passes_on_both_ways_and_closes_when_one_closes(proxy: Proxy) -> None:
    with connected(proxy) as one, connected(proxy) as other:
        assert says(one, b"a" * 300_000) == b"a" * 300_000
        assert says(other, b"b") == b"b"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        assert says(other, b"c") == b"c"
    assert proxy.accepted == 2


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_it_delays_one_direction(proxy: Proxy, direction: str) -> None:
    with connected(proxy) as connection:
        proxy.delay(0.2, direction)
        began = time.monotonic()
        assert says(connection, b"x") == b"x"
        assert time.monotonic() - began >= 0.2
        proxy.delay(0)
        assert says(connection, b"y") == b"y"


def test_a_reset_and_an_end_are_told_apart(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        says(connection, b"x")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connected(proxy) as connection:
        says(connection, b"x")
        proxy.cut(reset=False)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_what_is_stalled_arrives_later(proxy: Proxy, direction: str) -> None:
    with connected(proxy) as connection:
        says(connection, b"x")
        proxy.stall(direction)
        connection.sendall(b"y")
        assert is_quiet(connection)
        proxy.let_pass()
        assert connection.recv(1) == b"y"


def test_what_is_swallowed_never_arrives_and_the_connection_stays(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        says(connection, b"x")
        proxy.swallow(UP)
        connection.sendall(b"y" * 100_000)
        assert is_quiet(connection)
        proxy.let_pass()
        assert says(connection, b"z") == b"z"


def test_it_refuses_and_accepts_again_at_the_same_address(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        says(connection, b"w")  # connect(2) has returned before the proxy has accepted it
        proxy.refuse()
        assert says(connection, b"x") == b"x", "those connected go on"
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.accept()
        with connected(proxy) as another:
            assert says(another, b"y") == b"y"


def test_without_a_server_connections_are_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with (
        Rig() as rig,
        Proxy(rig, address) as proxy,
        pytest.raises(ConnectionResetError),  # by connect(2) already, if the proxy is quick
        connected(proxy) as connection,
    ):
        connection.recv(1)
