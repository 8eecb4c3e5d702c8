"""The token manager at work on sessions: what is sent to whom, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, RequestId, SessionId
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.service.calls import Acquire, Call, Hold, Use
from nfsfuse_server.service.tokens import Tokens, Waiting

HANDLE = InodeHandle(b"handle")
DATA, ATTR = Resource.DATA, Resource.ATTR
NONE, SHARED, EXCLUSIVE = TokenMode.NONE, TokenMode.SHARED, TokenMode.EXCLUSIVE
P = 4096


@dataclass(eq=False)
class FakeSession:
    """A session that is its own channel: what was put on the connection, and how to answer recalls."""

    id: SessionId
    sent: list[Any] = field(default_factory=list)
    unanswered: list[tuple[Token, Callable[..., None]]] = field(default_factory=list)

    @property
    def channel(self) -> FakeSession:
        return self

    def post(self, message: m.Recall, apply: Callable[..., None]) -> None:
        self.sent.append(message.token)
        self.unanswered.append((message.token, apply))

    def granted(self, handle: InodeHandle) -> None:
        """The frame just queued grants tokens of *handle*."""

    def knows_of_grants(self, handle: InodeHandle, frames_received: int) -> bool:
        return frames_received > 0

    def acknowledge(self, *returned: Token) -> None:
        _, apply = self.unanswered.pop(0)
        apply(m.Recalled(returned), b"")


class World:
    def __init__(self, sessions: int = 3) -> None:
        self.pinned: list[InodeHandle] = []
        self.all = [FakeSession(SessionId(b"%d" % number)) for number in range(sessions)]
        self.by_id: dict[Any, Any] = {session.id: session for session in self.all}
        self.leases = Leases(10)
        for session in self.all:
            self.leases.opened(session.id, 0.0)
        self.tokens = Tokens(self.by_id, self.pinned.append, self.pinned.remove, self.leases)

    def call(self, number: int) -> Call:
        return Call(self.all[number], None, b"", None, RequestId(1))  # type: ignore[arg-type]

    def get(self, number: int, mode: TokenMode, start: int = 0, end: int = RANGE_END) -> None:
        """Acquire at once, and reply."""
        call = self.call(number)
        assert isinstance(self.tokens.acquire(call, Acquire(HANDLE, DATA, mode, start, end)), tuple)
        self.all[number].sent.append("reply")
        self.tokens.ended(call)


async def test_a_recall_follows_the_reply_that_carries_its_grant() -> None:
    world = World()
    first, second = world.call(0), world.call(1)
    assert isinstance(world.tokens.acquire(first, Acquire(HANDLE, DATA, EXCLUSIVE)), tuple)
    waiting = world.tokens.acquire(second, Acquire(HANDLE, DATA, EXCLUSIVE, 0, P))
    assert isinstance(waiting, Waiting)
    assert world.all[0].sent == [], "it does not have it yet"
    world.all[0].sent.append("reply")
    world.tokens.ended(first)
    assert world.all[0].sent == ["reply", Token(HANDLE, DATA, 0, P, NONE)]
    world.all[0].acknowledge()
    assert [(t.start, t.end, t.mode) for t in await waiting.wait()] == [(0, P, EXCLUSIVE)]
    world.tokens.ended(second)
    world.tokens.check()


async def test_grants_are_in_the_order_of_arrival() -> None:
    world = World(4)
    world.get(0, EXCLUSIVE)
    waiting = []
    for number in (1, 2, 3):
        call = world.call(number)
        got = world.tokens.acquire(call, Acquire(HANDLE, DATA, EXCLUSIVE, 0, P))
        assert isinstance(got, Waiting)
        waiting.append((call, got))
    assert world.all[0].sent == ["reply", Token(HANDLE, DATA, 0, P, NONE)], "asked once"
    world.all[0].acknowledge()
    for number, (call, got) in zip((1, 2, 3), waiting, strict=True):
        assert got.granted
        assert not any(later.granted for _, later in waiting[number:])
        world.tokens.ended(call)
        if number < 3:
            world.all[number].acknowledge()


async def test_what_is_granted_goes_on_when_the_event_is_over_in_the_order_of_arrival() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    log: list[object] = []
    for number in (1, 2):
        got = world.tokens.acquire(world.call(number), Acquire(HANDLE, DATA, SHARED))
        assert isinstance(got, Waiting)

        def go_on(tokens: tuple[Token, ...], number: int = number) -> None:
            log.append((number, tokens[0].mode))
            world.tokens.resume_granted()  # as whatever goes on does at its end: nothing is done twice
            log.append("end")

        got.then(go_on)
    assert log == []
    world.all[0].acknowledge()
    assert log == [(1, SHARED), "end", (2, SHARED), "end"]
    world.tokens.check()


async def test_a_wait_that_is_given_up_after_its_grant_does_not_go_on() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    calls = [world.call(number) for number in (1, 2)]
    first, second = (world.tokens.acquire(call, Acquire(HANDLE, DATA, SHARED)) for call in calls)
    assert isinstance(first, Waiting)
    assert isinstance(second, Waiting)
    gone_on: list[int] = []

    def go_on(tokens: tuple[Token, ...]) -> None:
        gone_on.append(1)
        second.give_up()  # its session ends by what the first one does

    first.then(go_on)
    second.then(lambda tokens: gone_on.append(2))
    world.all[0].acknowledge()
    assert gone_on == [1]
    for call in calls:
        world.tokens.ended(call)
    world.tokens.check()


async def test_nothing_goes_on_in_a_server_that_is_ending() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    got = world.tokens.acquire(world.call(1), Acquire(HANDLE, DATA, SHARED))
    assert isinstance(got, Waiting)
    gone_on: list[object] = []
    got.then(gone_on.append)
    world.tokens.end()
    world.all[0].acknowledge()
    assert got.granted
    assert gone_on == []
    world.tokens.check()


async def test_asked_not_to_wait_it_is_refused_and_nobody_is_asked() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    assert world.tokens.acquire(world.call(1), Acquire(HANDLE, DATA, SHARED, wait=False)) is None
    assert world.all[0].sent == ["reply"]


async def test_a_cancelled_wait_leaves_the_queue_and_lets_the_next_one_by() -> None:
    world = World()
    world.get(0, SHARED)
    writer = world.call(1)
    waiting = world.tokens.acquire(writer, Acquire(HANDLE, DATA, EXCLUSIVE))
    assert isinstance(waiting, Waiting)
    reader = world.call(2)
    behind = world.tokens.acquire(reader, Acquire(HANDLE, DATA, SHARED))
    assert isinstance(behind, Waiting)
    with trio.CancelScope() as scope:
        scope.cancel()
        await waiting.wait()
    assert await behind.wait()
    for call in (writer, reader):
        world.tokens.ended(call)
    world.all[0].acknowledge()
    world.tokens.check()


async def test_held_until_the_call_has_ended() -> None:
    world = World()
    mutation = world.call(0)
    assert world.tokens.hold(mutation, Hold(HANDLE, ATTR)) == ()
    reader = world.call(1)
    waiting = world.tokens.acquire(reader, Acquire(HANDLE, ATTR, SHARED))
    assert isinstance(waiting, Waiting)
    assert not waiting.granted
    world.tokens.ended(mutation)
    assert waiting.granted
    world.tokens.ended(reader)


async def test_a_write_back_works_under_a_token_that_is_being_recalled_and_is_waited_for() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    other = world.call(1)
    waiting = world.tokens.acquire(other, Acquire(HANDLE, DATA, SHARED))
    assert isinstance(waiting, Waiting)
    write = world.call(0)
    assert world.tokens.use(write, Use(HANDLE, DATA, EXCLUSIVE, 0, P))
    world.all[0].acknowledge(Token(HANDLE, DATA, 0, RANGE_END, NONE))
    assert not waiting.granted, "the storage is still at it"
    late = world.call(0)
    assert not world.tokens.use(late, Use(HANDLE, DATA, EXCLUSIVE, 0, P)), "fenced"
    world.tokens.ended(write)
    assert waiting.granted
    world.tokens.ended(other)


async def test_a_session_that_ends_gives_everything_up_and_its_answers_count_no_more() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    call = world.call(1)
    waiting = world.tokens.acquire(call, Acquire(HANDLE, DATA, EXCLUSIVE))
    assert isinstance(waiting, Waiting)
    gone = world.all[0]
    del world.by_id[gone.id]
    world.tokens.dropped(gone)  # type: ignore[arg-type]
    assert waiting.granted
    world.tokens.ended(call)
    gone.acknowledge()
    world.tokens.check()


async def test_attributes_changed_asks_the_others_and_waits_for_nobody() -> None:
    world = World()
    for number in (1, 2):
        call = world.call(number)
        world.tokens.acquire(call, Acquire(HANDLE, ATTR, SHARED))
        world.tokens.ended(call)
    world.tokens.attributes_changed(world.all[0], HANDLE)  # type: ignore[arg-type]
    recall = Token(HANDLE, ATTR, 0, RANGE_END, NONE)
    assert [session.sent for session in world.all] == [[], [recall], [recall]]
    # Nothing waits: the next who asks is served, or waits for those alone.
    reader = world.call(0)
    assert isinstance(world.tokens.acquire(reader, Acquire(HANDLE, ATTR, SHARED)), tuple)
    world.tokens.ended(reader)
    for session in world.all[1:]:
        session.acknowledge()
    world.tokens.check()


async def test_attributes_changed_by_their_holder_disturbs_nobody() -> None:
    world = World()
    call = world.call(0)
    world.tokens.acquire(call, Acquire(HANDLE, ATTR, EXCLUSIVE))
    world.tokens.ended(call)
    world.tokens.attributes_changed(world.all[0], HANDLE)  # type: ignore[arg-type]
    assert all(session.sent == [] for session in world.all)


@pytest.mark.parametrize("how", ["given back", "recalled", "dropped"])
async def test_an_inode_without_a_name_is_pinned_while_a_token_on_it_is_held(how: str) -> None:
    world = World()
    assert not world.tokens.wants_pin(HANDLE)
    world.get(0, SHARED)
    assert world.tokens.wants_pin(HANDLE)
    for _ in range(2):  # two links of it are removed at once, and each has it pinned
        world.tokens.pin(HANDLE)
    for _ in range(2):
        world.tokens.pinned(HANDLE)
    assert world.pinned == [HANDLE]
    assert not world.tokens.wants_pin(HANDLE)
    holder = world.all[0]
    nothing = Token(HANDLE, DATA, 0, RANGE_END, NONE)
    if how == "given back":
        world.tokens.given_back(holder, (nothing,), 0)  # type: ignore[arg-type]
        assert world.pinned, "a grant that was on its way is not given back"
        world.tokens.given_back(holder, (nothing,), 1)  # type: ignore[arg-type]
    elif how == "dropped":
        del world.by_id[holder.id]
        world.tokens.dropped(holder)  # type: ignore[arg-type]
    else:
        mutation = world.call(1)
        world.tokens.hold(mutation, Hold(HANDLE, DATA))
        holder.acknowledge()
        world.tokens.ended(mutation)
    assert world.pinned == []


async def test_a_direct_change_takes_the_token_and_is_in_nobodys_way() -> None:
    world = World()
    assert not world.tokens.changed_directly(HANDLE, DATA), "nobody to tell"
    world.get(0, EXCLUSIVE)
    assert world.tokens.changed_directly(HANDLE, DATA)
    assert world.tokens.changed_directly(HANDLE, DATA), "told already: once is enough"
    assert not world.tokens.changed_directly(HANDLE, ATTR)
    assert world.all[0].sent == ["reply", Token(HANDLE, DATA, 0, RANGE_END, NONE)]
    reader = world.call(1)
    waiting = world.tokens.acquire(reader, Acquire(HANDLE, DATA, SHARED))
    assert isinstance(waiting, Waiting)
    world.all[0].acknowledge()
    assert waiting.granted
    world.tokens.ended(reader)
    world.tokens.check()
    world.get(2, SHARED)
    assert not world.tokens._direct
    assert not world.tokens._direct_waiting


async def test_a_direct_change_takes_also_what_is_on_its_way() -> None:
    """The reply that is not queued yet may carry what was read before the change."""
    world = World()
    reader = world.call(0)
    assert isinstance(world.tokens.acquire(reader, Acquire(HANDLE, DATA, SHARED)), tuple)
    assert world.tokens.changed_directly(HANDLE, DATA)
    assert world.all[0].sent == []
    world.all[0].sent.append("reply")
    world.tokens.ended(reader)
    assert world.all[0].sent == ["reply", Token(HANDLE, DATA, 0, RANGE_END, NONE)]
    world.all[0].acknowledge()
    world.tokens.check()
    assert not world.tokens.manager.held()


async def test_a_direct_change_of_a_name_leaves_the_other_names() -> None:
    world = World()
    call = world.call(0)
    world.tokens.acquire(call, Acquire(HANDLE, Resource.DIR, SHARED))
    world.tokens.ended(call)
    for point in (7, 9):
        assert world.tokens.changed_directly(HANDLE, Resource.DIR, point, point + 1)
    assert [(t.start, t.end) for t in world.all[0].sent] == [(7, 8), (9, 10)]
    for _ in range(2):
        world.all[0].acknowledge()
    assert not world.tokens._direct
    holders = world.tokens.manager.holders(HANDLE, Resource.DIR)
    assert [(t.start, t.end) for t in holders[world.all[0].id]] == [(0, 7), (8, 9), (10, RANGE_END)]
    world.tokens.check()


async def test_a_direct_change_of_what_a_vanished_client_holds_ends_with_it() -> None:
    world = World()
    world.get(0, EXCLUSIVE)
    assert world.tokens.changed_directly(HANDLE, DATA)
    gone = world.all[0]
    del world.by_id[gone.id]
    world.tokens.dropped(gone)  # type: ignore[arg-type]
    assert not world.tokens._direct
    world.get(1, EXCLUSIVE)
    world.tokens.check()
