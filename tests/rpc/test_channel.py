"""The channel over an in-memory stream under trio's own clock."""

from __future__ import annotations

import errno
import logging
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.protocol.codec import ReplyEnvelope, encode
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.framing import frame_prefix
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.protocol.messages import (
    Done,
    GetAttr,
    Heartbeat,
    Message,
    ReadLink,
    SetXattr,
    Target,
    Unlink,
)
from nfsfuse.protocol.types import InodeHandle, RequestId
from nfsfuse.rpc.exchange import RequestArrived
from nfsfuse.rpc.link import QUEUED_BYTES_MAX
from nfsfuse.rpc.streams import ConnectionLost
from tests.helpers.channels import Side, connected
from tests.helpers.streams import memory_stream_pair

MAY_ASK: frozenset[type[Message]] = frozenset({Heartbeat, ReadLink, SetXattr, Unlink})
HANDLE = InodeHandle(b"handle")


def link(number: int) -> ReadLink:
    return ReadLink(InodeHandle(b"link %d" % number))


def echo(side: Side, event: RequestArrived) -> None:
    """Answer a ReadLink with the handle asked for and the payload that came."""
    assert isinstance(event.message, ReadLink)
    side.channel.reply(event.id, Target(bytes(event.message.handle)), event.payload)


# --- calls ---


async def test_replies_in_another_order_find_their_callers(autojump_clock):
    got: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        reply, payload = await client.channel.call(link(number))
        assert payload == b"payload %d" % number
        got[number] = reply.target

    async with connected(MAY_ASK) as (client, server), trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(ask, number)
        await wait_all_tasks_blocked()
        by_link = {event.message.handle: event for event in server.arrived}  # type: ignore[attr-defined]
        for number in (2, 0, 3, 1):
            event = by_link[b"link %d" % number]
            server.channel.reply(event.id, Target(b"target %d" % number), b"payload %d" % number)
            await wait_all_tasks_blocked()
            assert list(got)[-1] == number
    assert got == {number: b"target %d" % number for number in range(4)}


async def test_hooks_and_requests_are_applied_in_receive_order_before_any_task(autojump_clock):
    seen: list[str] = []

    async def ask(number: int) -> None:
        await client.channel.call(link(number), apply=lambda *_: seen.append(f"hook {number}"))
        seen.append(f"task {number}")

    async with connected(MAY_ASK) as (client, server), trio.open_nursery() as nursery:
        client.on_request = lambda _: seen.append("request")
        nursery.start_soon(ask, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, 2)
        await wait_all_tasks_blocked()
        first, second = (event.id for event in server.arrived)
        server.channel.reply(second, Target(b""))
        server.channel.post(Heartbeat())
        server.channel.reply(first, Target(b""))
        server.channel.post(Heartbeat())
    assert seen[:4] == ["hook 2", "request", "hook 1", "request"]
    assert sorted(seen[4:]) == ["task 1", "task 2"]


async def test_a_cancelled_call_returns_at_once_and_its_hook_still_runs(autojump_clock):
    applied: list[tuple[Message, bytes]] = []
    async with connected(MAY_ASK) as (client, server):
        started = trio.current_time()
        with trio.move_on_after(1.0) as scope:
            await client.channel.call(
                link(1), apply=lambda message, payload: applied.append((message, bytes(payload)))
            )
        assert scope.cancelled_caught
        assert trio.current_time() == started + 1.0
        (event,) = server.arrived
        assert client.abandoned == [event.id]
        assert applied == []
        server.channel.reply(event.id, Target(b"granted"), b"content")
        await wait_all_tasks_blocked()
        assert applied == [(Target(b"granted"), b"content")]
        assert client.exchange.asked == 0


async def test_an_errno_for_a_cancelled_caller_harms_nobody(autojump_clock, caplog):
    async with connected(MAY_ASK) as (client, server):
        with trio.move_on_after(1.0):
            await client.channel.call(link(1), apply=lambda *_: pytest.fail("there is nothing to apply"))
        server.channel.fail(server.arrived[0].id, errno.EINTR)
        await wait_all_tasks_blocked()
        assert client.channel.lost is None
    assert caplog.records == []


async def test_an_errno_travels_and_applies_nothing(autojump_clock):
    async with connected(MAY_ASK) as (client, server):
        server.on_request = lambda event: server.channel.fail(event.id, errno.ENOENT, "no such name")
        with pytest.raises(FsError) as caught:
            await client.channel.call(link(1), apply=lambda *_: pytest.fail("there is nothing to apply"))
    assert (caught.value.errno, caught.value.detail) == (errno.ENOENT, "no such name")


async def test_both_sides_ask_each_other_while_they_are_asked(autojump_clock):
    depth = 20
    reached: list[int] = []

    async def bounce(side: Side, number: int) -> None:
        """Ask the peer, who asks back before it answers, until *depth*."""
        reply, _ = await side.channel.call(link(number))
        assert reply.target == b"link %d" % number

    def on_request(side: Side, event: RequestArrived) -> None:
        number = int(event.message.handle.split()[1])  # type: ignore[attr-defined]
        reached.append(number)

        async def answer() -> None:
            if number < depth:
                await bounce(side, number + 1)
            echo(side, event)

        nursery.start_soon(answer)

    async with connected(MAY_ASK, there_seconds=0.1, back_seconds=0.2) as (one, other):
        one.on_request = partial(on_request, one)
        other.on_request = partial(on_request, other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bounce, one, 0)
            nursery.start_soon(bounce, other, 0)
    assert sorted(reached) == sorted([*range(depth + 1)] * 2)


async def test_a_round_trip_takes_both_delays(autojump_clock):
    async with connected(MAY_ASK, there_seconds=2.0, back_seconds=3.0) as (client, server):
        server.on_request = partial(echo, server)
        started = trio.current_time()
        await client.channel.call(link(1))
        assert trio.current_time() == started + 5.0


async def test_post_waits_for_nothing_and_an_errno_is_logged(autojump_clock, caplog):
    async with connected(MAY_ASK) as (client, server):
        client.channel.post(Unlink(HANDLE, b"one"))
        client.channel.post(Heartbeat())
        await wait_all_tasks_blocked()
        unlink, heartbeat = server.arrived
        server.channel.reply(heartbeat.id, Done())
        await wait_all_tasks_blocked()
        assert caplog.records == []
        server.channel.fail(unlink.id, errno.EACCES, "not yours")
        await wait_all_tasks_blocked()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Unlink" in record.getMessage()
    assert "EACCES" in record.getMessage()
    assert "not yours" in record.getMessage()


async def test_the_hook_of_what_was_posted_runs_with_the_reply(autojump_clock):
    applied: list[Message] = []
    async with connected(MAY_ASK) as (client, server):
        client.channel.post(link(1), lambda message, _: applied.append(message))
        await wait_all_tasks_blocked()
        assert applied == []
        echo(server, server.arrived[0])
        await wait_all_tasks_blocked()
    assert applied == [Target(b"link 1")]


async def test_who_asks_without_a_task_is_told_of_the_answer_or_the_failure(autojump_clock, caplog):
    told: list[object] = []
    async with connected(MAY_ASK) as (client, server):

        def ask(number: int) -> None:
            client.channel.ask(link(number), b"", lambda message, _: told.append(message), told.append)

        ask(1)
        ask(2)
        ask(3)
        await wait_all_tasks_blocked()
        first, second, _ = server.arrived
        server.channel.fail(second.id, errno.EACCES)
        echo(server, first)
        await wait_all_tasks_blocked()
        refused, answer = told
        assert isinstance(refused, FsError)
        assert refused.errno == errno.EACCES
        assert answer == Target(b"link 1")
        client.channel.end("enough")
        ask(4)
        assert [str(failure) for failure in told[2:]] == ["enough", "enough"]
    assert not caplog.records, "who asked tells of it"


async def test_fail_if_unanswered_answers_once(autojump_clock):
    async with connected(MAY_ASK) as (client, server):

        def answer_and_fail(event: RequestArrived) -> None:
            echo(server, event)
            server.channel.fail_if_unanswered(event.id, errno.EIO)

        server.on_request = answer_and_fail
        await client.channel.call(link(1))
        server.on_request = lambda event: server.channel.fail_if_unanswered(event.id, errno.EIO)
        with pytest.raises(FsError, match="EIO"):
            await client.channel.call(link(1))
        assert client.channel.lost is None


# --- sending ---


@pytest.mark.parametrize("capacity", [1, 97, 4099])
async def test_large_payloads_both_ways_through_a_tiny_stream(autojump_clock, capacity):
    """Neither side may stop reading while it cannot send; and no byte is lost, doubled or moved."""
    size = min(capacity * 500, 50_000)
    calls = 6

    async def ask(side: Side, number: int) -> None:
        content = bytes((number + index) % 251 for index in range(size))
        reply, payload = await side.channel.call(link(number), content)
        assert reply.target == b"link %d" % number
        assert payload == content
        answered.append(number)

    answered: list[int] = []
    async with connected(MAY_ASK, capacity) as (one, other):
        one.on_request = partial(echo, one)
        other.on_request = partial(echo, other)
        async with trio.open_nursery() as nursery:
            for number in range(calls):
                nursery.start_soon(ask, one, number)
                nursery.start_soon(ask, other, number)
    assert sorted(answered) == sorted([*range(calls)] * 2)
    assert one.stream.bytes_sent == other.stream.bytes_sent > 2 * calls * size


async def test_frames_keep_their_order_when_they_queue(autojump_clock):
    async with connected(MAY_ASK, capacity=10) as (client, server):
        for number in range(300):
            client.channel.post(link(number))
        await wait_all_tasks_blocked()
        got = [event.message.handle for event in server.arrived]  # type: ignore[attr-defined]
        assert got == [b"link %d" % number for number in range(300)]
        assert client.channel.frames_sent == 300
        for event in server.arrived:
            server.channel.reply(event.id, Target(b""))
        await wait_all_tasks_blocked()


async def fill(side: Side, nursery: trio.Nursery, calls: int = 5) -> None:
    """Start *calls* writes whose payloads together are more than `writable` lets pass."""

    async def write() -> None:
        with pytest.raises(ConnectionLost):
            await side.channel.call(SetXattr(HANDLE, b"name", 0), bytes(QUEUED_BYTES_MAX // (calls - 1)))

    for _ in range(calls):
        nursery.start_soon(write)
    await wait_all_tasks_blocked()


async def test_writable_waits_for_a_peer_that_does_not_read_and_lets_all_waiters_go(autojump_clock):
    passed: list[int] = []

    async def wait(number: int) -> None:
        await side.channel.writable()
        passed.append(number)

    stream, peer = memory_stream_pair(1 << 20)
    side = Side(stream, MAY_ASK)
    await side.channel.writable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.run)
        await fill(side, nursery)
        for number in range(3):
            nursery.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert passed == []
        buffer = memoryview(bytearray(1 << 20))
        while stream.bytes_sent <= QUEUED_BYTES_MAX // 4:
            await peer.receive_into(buffer)
            await wait_all_tasks_blocked()
        assert sorted(passed) == [0, 1, 2]
        peer.close()
    side.check_nothing_left()


async def test_writable_ends_with_the_connection(autojump_clock):
    stream, peer = memory_stream_pair(1000)
    side = Side(stream, MAY_ASK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.run)
        await fill(side, nursery)
        nursery.start_soon(side.channel.writable)
        nursery.start_soon(side.channel.writable)
        await wait_all_tasks_blocked()
        peer.cut()
    await side.channel.writable()
    side.check_nothing_left()


# --- the end ---


async def ask_and_lose(side: Side, why: str) -> None:
    with pytest.raises(ConnectionLost) as caught:
        await side.channel.call(Heartbeat())
    assert str(caught.value) == why


async def test_a_cut_is_told_to_everybody_who_waits(autojump_clock):
    async with connected(MAY_ASK) as (client, server), trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask_and_lose, client, "cable pulled")
            nursery.start_soon(ask_and_lose, server, "cable pulled")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await client.channel.call(Heartbeat())
        client.stream.cut("cable pulled")
    for side in client, server:
        assert type(side.failure) is ConnectionLost
        assert str(side.failure) == side.channel.lost == "cable pulled"
    await ask_and_lose(client, "cable pulled")  # and to those who come later


async def test_a_connection_that_is_over_ignores_what_is_posted_and_answered(autojump_clock):
    async with connected(MAY_ASK) as (client, server):
        client.channel.post(Heartbeat())
        client.channel.post(Heartbeat())
        await wait_all_tasks_blocked()
        first, second = server.arrived
        client.stream.cut()
        await server.ended.wait()
        sent = server.channel.frames_sent
        server.channel.reply(first.id, Done())
        server.channel.fail(second.id, errno.EIO)
        server.channel.post(Heartbeat())
        assert server.channel.frames_sent == sent
    assert server.exchange.asked == 0


async def test_a_peer_that_closes_between_frames_ends_the_run_quietly(autojump_clock):
    async with connected(MAY_ASK) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(ask_and_lose, client, "closed")
        await wait_all_tasks_blocked()
        server.link.close()
        await client.ended.wait()
    assert client.failure is None
    assert type(server.failure) is ConnectionLost, "its own end was closed under it"


async def test_replies_that_were_sent_before_the_end_still_arrive(autojump_clock):
    async with connected(MAY_ASK, back_seconds=5.0) as (client, server), trio.open_nursery() as nursery:
        server.on_request = partial(echo, server)
        nursery.start_soon(client.channel.call, link(1))
        await wait_all_tasks_blocked()
        server.link.close()


async def test_a_call_between_close_and_the_end_is_lost(autojump_clock):
    async with connected(MAY_ASK) as (client, _):
        client.link.close()
        await ask_and_lose(client, "closed")


async def test_cancelling_the_run_ends_the_connection(autojump_clock):
    stream, peer = memory_stream_pair()
    side = Side(stream, MAY_ASK)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(ask_and_lose, side, "closed")
            await wait_all_tasks_blocked()
            scope.cancel()
            await side.run()
    side.check_nothing_left()
    assert await peer.receive_into(memoryview(bytearray(1000))) > 0
    assert await peer.receive_into(memoryview(bytearray(1000))) == 0


def framed(header: bytes, payload_size: int = 0, received: int = 0) -> bytes:
    return frame_prefix(header, payload_size, received)


WRONG = {
    "stranger": (b"SSH-2.0-", "not an nfsfuse peer"),
    "garbage": (MAGIC + framed(b"\xc1"), "not msgpack"),
    "too large": (MAGIC + b"\xff" * 16, "frame too large"),
    "answered but not acknowledged": (
        MAGIC + framed(encode(ReplyEnvelope(RequestId(2), Done())), received=1),
        "request 2 is answered but not acknowledged",
    ),
    "acknowledged but not sent": (MAGIC + framed(b"", received=3), "3 frames acknowledged, of 2 sent"),
    "unasked": (MAGIC + framed(encode(ReplyEnvelope(RequestId(77), Done()))), "77, which is not asked"),
    "wrong reply": (
        MAGIC + framed(encode(ReplyEnvelope(RequestId(1), Target(b""))), received=2),
        "Heartbeat was answered by Target",
    ),
}


@pytest.mark.parametrize(("sent", "why"), WRONG.values(), ids=WRONG.keys())
async def test_what_no_correct_peer_sends_ends_the_connection_with_the_reason(autojump_clock, sent, why):
    stream, peer = memory_stream_pair()
    side = Side(stream, frozenset({Heartbeat}))
    reasons: list[str] = []

    async def ask() -> None:
        with pytest.raises(ConnectionLost) as caught:
            await side.channel.call(Heartbeat())
        reasons.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        nursery.start_soon(side.run)
        await wait_all_tasks_blocked()
        assert peer.try_send([sent]) == len(sent)
    assert type(side.failure) is ProtocolError
    assert why in str(side.failure)
    assert reasons == [str(side.failure)] * 2
    side.check_nothing_left()


async def test_a_request_that_is_not_the_peers_ends_the_connection(autojump_clock):
    async with connected(MAY_ASK) as (client, server):
        with pytest.raises(ConnectionLost):
            await client.channel.call(GetAttr(HANDLE))
    assert type(server.failure) is ProtocolError
    assert "GetAttr" in str(server.failure)


@pytest.mark.parametrize("sent", [MAGIC[:3], MAGIC + b"\x01", MAGIC + framed(b"abcd", 9) + b"12345678"])
async def test_a_stream_that_ends_inside_a_frame_is_lost_rather_than_wrong(autojump_clock, sent):
    """It is what a killed peer's kernel sends: to be reconnected to, not to be given up as broken."""
    stream, peer = memory_stream_pair()
    side = Side(stream, MAY_ASK)
    peer.try_send([sent])
    peer.close()
    await side.run()
    assert type(side.failure) is ConnectionLost
    assert "inside a frame" in str(side.failure)
    side.check_nothing_left()


async def test_a_failing_hook_ends_the_run_and_its_caller_is_not_forgotten(autojump_clock):
    def hook(*_: object) -> None:
        raise AssertionError("an invariant of ours")

    async def ask() -> None:
        with pytest.raises(ConnectionLost):
            await side.channel.call(Heartbeat(), apply=hook)

    stream, peer = memory_stream_pair()
    side = Side(stream, MAY_ASK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        peer.try_send([MAGIC + framed(encode(ReplyEnvelope(RequestId(1), Done())), received=1)])
        side.channel.attach(side.link, 0)
        with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="an invariant of ours")):
            await side.channel.serve(side.link)
        side.channel.end("a bug")
    side.check_nothing_left()


async def test_a_frame_that_could_not_be_sent_ends_the_run_with_the_reason(autojump_clock):
    """The reader may only see an ordinary end, since the kernel reports a broken socket once."""
    stream, peer = memory_stream_pair()
    side = Side(stream, MAY_ASK)
    async with trio.open_nursery() as nursery:
        peer.close()
        nursery.start_soon(ask_and_lose, side, "broken pipe")
        nursery.start_soon(side.run)
    assert type(side.failure) is ConnectionLost
    assert str(side.failure) == "broken pipe"


async def test_a_thousand_calls_leave_nothing_behind(autojump_clock):
    async with connected(MAY_ASK, capacity=700) as (client, server):
        server.on_request = partial(echo, server)
        for round_number in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(client.channel.call, link(number), b"x" * round_number)
        for side in client, server:
            assert side.channel._calls == {}
            assert side.exchange.asked == 0
            assert side.exchange._answering == {}


# --- what becomes of a call that nobody waits for any more ---


@pytest.mark.parametrize("cut", [False, True])
async def test_the_failure_of_an_abandoned_call_is_told(autojump_clock, cut: bool):
    failures: list[Exception] = []
    async with connected(MAY_ASK) as (client, server):
        with trio.move_on_after(1):
            await client.channel.call(link(1), b"", None, failures.append)
        assert failures == []
        if cut:
            client.stream.cut()
        else:
            server.channel.fail(server.arrived[0].id, errno.EINTR)
        await wait_all_tasks_blocked()
    (failure,) = failures
    assert isinstance(failure, ConnectionLost if cut else FsError)


async def test_a_call_on_a_lost_connection_fails_in_every_way(autojump_clock):
    failures: list[Exception] = []
    async with connected(MAY_ASK) as (client, _):
        client.link.close()
        await wait_all_tasks_blocked()
        with pytest.raises(ConnectionLost):
            await client.channel.call(link(1), b"", None, failures.append)
        assert [type(failure) for failure in failures] == [ConnectionLost]
