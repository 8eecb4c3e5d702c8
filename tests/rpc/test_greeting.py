"""The greeting between peers of different versions: each is told what to do, whichever is the older."""

from __future__ import annotations

import errno

import pytest
import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codec import FailureEnvelope, RequestEnvelope, encode
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.framing import frame_prefix
from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.types import ClientId, Epoch, RequestId, SessionId
from nfsfuse.rpc.greeting import be_greeted, greet
from nfsfuse.rpc.link import Link
from tests.helpers.streams import memory_stream_pair

NOBODY = SessionId(b"")
UPGRADE = {PROTOCOL_VERSION - 1: "upgrade the client", PROTOCOL_VERSION + 1: "upgrade the server"}


def hello(version: int) -> m.Hello:
    return m.Hello(version, ClientId(b"c" * 16), NOBODY, Epoch(0), 0, NOBODY, "a test", ())


@pytest.mark.parametrize("version", UPGRADE)
async def test_a_client_of_another_version_is_told_who_is_to_be_upgraded(version: int) -> None:
    one, other = memory_stream_pair()
    client, server = Link(one), Link(other)

    async def serve() -> None:
        with pytest.raises(FsError) as caught:
            await be_greeted(server)
        assert caught.value.errno == errno.EPROTONOSUPPORT

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(FsError) as caught:
            await greet(client, hello(version))
    assert caught.value.errno == errno.EPROTONOSUPPORT
    assert UPGRADE[version] in caught.value.detail
    assert f"version {PROTOCOL_VERSION}, the client {version}" in caught.value.detail


async def test_a_hello_that_has_more_to_say_is_understood_enough_to_be_refused() -> None:
    one, other = memory_stream_pair()
    client, server = Link(one), Link(other)
    header = encode(RequestEnvelope(RequestId(0), hello(PROTOCOL_VERSION + 1)))
    longer = bytes([header[0] + 1]) + header[1:] + b"\xc3"  # an element more, of the array of up to 15
    client.send([frame_prefix(longer, 0)])
    with pytest.raises(FsError, match="upgrade the server"):
        await be_greeted(server)


async def test_a_server_of_the_first_version_says_not_what_to_do() -> None:
    one, other = memory_stream_pair()
    client, server = Link(one), Link(other)
    said = f"the server speaks protocol version 1, the client {PROTOCOL_VERSION}"
    refusal = encode(FailureEnvelope(RequestId(0), errno.EPROTONOSUPPORT, said))
    server.send([frame_prefix(refusal, 0)])
    with pytest.raises(FsError) as caught:
        await greet(client, hello(PROTOCOL_VERSION))
    assert caught.value.detail.startswith(said)
    assert "upgrade whichever is the older" in caught.value.detail
