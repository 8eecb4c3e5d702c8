"""The token manager under seeded random clients: requests, slow acknowledgements, gifts, crashes."""

from __future__ import annotations

import random

import pytest

from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle, SessionId
from server.machines.tokens import TokenManager
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
        world, pick = self.world, self.random
        session = pick.choice(list(world.clients))
        client = world.clients[session]
        match pick.choices(
            ["ask", "acknowledge", "give back", "receive", "deliver", "end", "cancel", "crash"],
            [8, 8, 1, 12, 12, 8, 1, 0.1],
        )[0]:
            case "ask" if len(client.asked) < 4:
                self.ask(session)
            case "acknowledge" if client.owed:
                returned = tuple(self.weaker() for _ in range(pick.choice([0, 0, 0, 1, 2])))
                world.acknowledge(session, pick.randrange(len(client.owed)), returned)
            case "give back":
                world.give_back(session, tuple(self.weaker() for _ in range(pick.choice([1, 2]))))
            case "receive" if world.down[session]:
                world.receive(session)
            case "deliver" if world.up[session]:
                world.deliver(session)
            case "end" if world.running:
                world.end(pick.choice(list(world.running)))
            case "cancel" if world.waiting:
                world.cancel(pick.choice(list(world.waiting)))
            case "crash":
                world.drop(session)
                self.sessions += 1
                world.join(SessionId(b"s%d" % self.sessions))


@pytest.mark.parametrize("extents_max", [1024, 2])
@pytest.mark.parametrize("seed", range(12))
def test_nobody_ever_believes_what_another_excludes_and_everybody_is_served(seed: int, extents_max: int):
    simulation = Simulation(seed, extents_max)
    for _ in range(800):
        simulation.step()
        simulation.world.check()
    simulation.world.drain()
    simulation.world.check()
    for session in list(simulation.world.clients):
        simulation.world.drop(session)
    assert not simulation.world.manager._states, "no state is left behind"
