"""Requests of sessions: what becomes of those that wait when something ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.tokens import RANGE_END, Resource, TokenMode
from nfsfuse.rpc.streams import ConnectionLost
from nfsfuse_server.service.calls import Call, Handling, Slow
from nfsfuse_server.service.requests import HANDLERS
from tests.helpers.service import Client, serving

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def get(client: Client, mode: TokenMode) -> m.TokenGrant:
    message = m.GetToken(client.root.handle, TokenMode.NONE, 0, RANGE_END, mode)
    reply, _ = await client.session.call(message)
    return reply


async def test_what_is_found_wrong_in_a_task_ends_its_own_session_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(call: Call) -> Handling:
        yield Slow(lambda: None)
        raise ProtocolError("nobody asks this")

    monkeypatch.setitem(HANDLERS, m.Fsync, wrong)
    async with serving() as it:
        one, other = await it.client(), await it.client()
        (session,) = (each for each in it.service.sessions.values() if each.client_name == "client-1")
        one.session.post(m.Fsync(one.root.handle, False))
        with trio.fail_after(10):
            await session.over.wait()
        assert "nobody asks this" in caplog.text
        assert (await get(other, TokenMode.EXCLUSIVE)).tokens


async def test_who_waits_for_tokens_can_give_up_and_others_go_on() -> None:
    async with serving() as it:
        holder, waiter, last = [await it.client() for _ in range(3)]
        recalled = trio.Event()
        answers = []
        holder.owner.on_recall = lambda recall, answer: (answers.append(answer), recalled.set())
        assert (await get(holder, TokenMode.EXCLUSIVE)).tokens
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, waiter, TokenMode.EXCLUSIVE)
                await recalled.wait()
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        (waiting,) = (each for each in it.service.sessions.values() if each.client_name == "client-2")
        assert waiting.running == {}, "the cancellation has arrived"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, last, TokenMode.EXCLUSIVE)
            await trio.testing.wait_all_tasks_blocked()
            for answer in answers:
                answer(m.Recalled(()))
        assert it.service.tokens.manager.holds(
            next(each.id for each in it.service.sessions.values() if each.client_name == "client-3"),
            holder.root.handle, Resource.ATTR, 0, RANGE_END, TokenMode.EXCLUSIVE,
        )  # fmt: skip
        it.service.tokens.check()


async def test_a_session_that_ends_leaves_the_queue_and_is_not_granted_anything() -> None:
    async with serving() as it:
        holder, waiter = [await it.client() for _ in range(2)]
        answers = []
        holder.owner.on_recall = lambda recall, answer: answers.append(answer)
        assert (await get(holder, TokenMode.EXCLUSIVE)).tokens
        failures: list[Exception] = []

        async def wait() -> None:
            try:
                await get(waiter, TokenMode.EXCLUSIVE)
            except (FsError, ConnectionLost) as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            (session,) = (each for each in it.service.sessions.values() if each.client_name == "client-2")
            assert len(session.running) == 1
            session.end("for the test")
            await trio.testing.wait_all_tasks_blocked()
            assert session.running == {}
            (answer,) = answers
            answer(m.Recalled(()))
            await trio.testing.wait_all_tasks_blocked()
            assert not it.service.tokens.manager.holds(
                session.id, holder.root.handle, Resource.ATTR, 0, RANGE_END, TokenMode.SHARED
            )
            it.service.tokens.check()
            nursery.cancel_scope.cancel()
