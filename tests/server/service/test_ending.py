"""The service ends, and connections do not know it yet: what they bring is begun by nobody, and answered by
nobody. The client asks the successor."""

from __future__ import annotations

import logging

import pytest
import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import Credentials
from nfsfuse.rpc.streams import ConnectionLost
from tests.helpers.service import serving

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def test_a_request_that_arrives_is_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    """Found by a test that was run often: its handler had no nursery any more, so it was answered EIO."""
    async with serving() as server:
        client = await server.client()
        node = server.storage.create(client.root.handle, b"file", 0o644, Credentials(0, 0))
        exclusive = TokenMode.EXCLUSIVE
        await client.session.call(m.GetToken(node.handle, exclusive, 0, RANGE_END, exclusive))
        kept = server.service.sessions[client.session.session_id]
        await server.end()
        with trio.move_on_after(60) as waited:
            await client.session.call(m.Fsync(node.handle, False))
        assert waited.cancelled_caught, "nobody has answered"
        assert not kept.running
        assert not kept.channel.connected
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_comes_is_sent_away(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        await server.end()
        with pytest.raises(ConnectionLost):
            await server.client()
        assert not server.service.sessions
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
