"""The token manager under seeded random clients: requests, slow acknowledgements, gifts, crashes."""

from __future__ import annotations

import random

import pytest

from nfsfuse.protocol import range_index
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle, SessionId
from nfsfuse_server.machines import token_state
from nfsfuse_server.machines.tokens import TokenManager
from tests.helpers.token_world import Ask, World

HANDLES = [InodeHandle(b"file"), InodeHandle(b"other")]
RESOURCES = [Resource.DATA, Resource.DATA, Resource.DATA, Resource.ATTR]
PAGES = 6


class Simulation:
    """Random steps in a `World`; everything follows from the seed."""

    def __init__(self, seed: int, extents_max: int) -> None:
        self.random = random.Random(seed)
        self.world = World(TokenManager(extents_max), [SessionId(b"s%d" % n) for n in range(4)])
        self.tickets = 0
        self.sessions = 4

    def range(self) -> tuple[int, int]:
        start, end = sorted(self.random.sample(range(PAGES + 1), 2))
        return start * PAGE_SIZE, RANGE_END if end == PAGES else end * PAGE_SIZE

    def token(self, mode: TokenMode) -> Token:
        handle = self.random.choices(HANDLES, [5, 1])[0]
        return Token(handle, self.random.choice(RESOURCES), *self.range(), mode)

    def weaker(self) -> Token:
        return self.token(self.random.choice([TokenMode.NONE, TokenMode.SHARED]))

    def ask(self, session: SessionId) -> None:
        about = self.token(self.random.choice([TokenMode.SHARED, TokenMode.EXCLUSIVE]))
        self.tickets += 1
        transient = self.random.random() < 0.3
        where = (about.handle, about.resource, about.start, about.end)
        self.world.ask(Ask(self.tickets, session, *where, about.mode, transient))

    def step(self) -> None:
        """One of the steps that are possible for a client chosen at random."""
        world, pick = self.world, self.random
        session = pick.choice(list(world.clients))
        client = world.clients[session]
        possible = {
            self.crash: 0.05,
            self.give_back: 0.5,
            self.ask: 6 if len(client.asked) < 4 else 0,
            self.acknowledge: 6 if client.owed else 0,
            world.receive: 10 if world.down[session] else 0,
            world.deliver: 10 if world.up[session] else 0,
            self.work: 2,
            self.end: 6 if world.running else 0,
            self.cancel: 0.5 if world.waiting else 0,
        }
        pick.choices(list(possible), list(possible.values()))[0](session)

    def acknowledge(self, session: SessionId) -> None:
        returned = tuple(self.weaker() for _ in range(self.random.choice([0, 0, 0, 1, 2])))
        index = self.random.randrange(len(self.world.clients[session].owed))
        self.world.acknowledge(session, index, returned)

    def work(self, session: SessionId) -> None:
        """An operation under a token that the server knows of, as a write-back is."""
        for (handle, resource), tokens in self.world.clients[session].belief.items():
            for start, end, mode in tokens:
                self.tickets += 1
                self.world.use(Ask(self.tickets, session, handle, resource, start, end, mode, True))
                return

    def give_back(self, session: SessionId) -> None:
        self.world.give_back(session, tuple(self.weaker() for _ in range(self.random.choice([1, 2]))))

    def end(self, _: SessionId) -> None:
        self.world.end(self.random.choice(list(self.world.running)))

    def cancel(self, _: SessionId) -> None:
        self.world.cancel(self.random.choice(list(self.world.waiting)))

    def crash(self, session: SessionId) -> None:
        self.world.drop(session)
        self.sessions += 1
        self.world.join(SessionId(b"s%d" % self.sessions))


@pytest.mark.parametrize("extents_max", [1024, 2])
@pytest.mark.parametrize("seed", range(12))
def test_nobody_ever_believes_what_another_excludes_and_everybody_is_served(seed: int, extents_max: int):
    go_through(seed, extents_max)


@pytest.mark.parametrize("extents_max", [1024, 2])
@pytest.mark.parametrize("seed", range(12, 24))
def test_nor_where_indices_are_asked(seed: int, extents_max: int, monkeypatch):
    """As of crowds. The check after each step goes by what is held and waits, and not by indices."""
    monkeypatch.setattr(range_index, "FEW", 1)
    monkeypatch.setattr(token_state, "FEW_HOLDERS", 1)
    go_through(seed, extents_max)


def go_through(seed: int, extents_max: int) -> None:
    simulation = Simulation(seed, extents_max)
    for _ in range(800):
        simulation.step()
        simulation.world.check()
    simulation.world.drain()
    simulation.world.check()
    for session in list(simulation.world.clients):
        simulation.world.drop(session)
    assert not simulation.world.manager._states, "no state is left behind"
