"""A mixed load of two clients while servers and clients die and connections fail, and what they were told.

A few rounds here; 50 of each with ``--soak`` (scripts/soak-faults), which prints its figures (``-s``).
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from scripts.proof.load.world import MARGIN_SECONDS, SLACK_SECONDS, World
from scripts.rig.proxy import Proxy
from scripts.rig.rig import Rig

ROUNDS = 3
ROUNDS_SOAK = 50
ROUND_SECONDS_MAX = 60.0


@pytest.fixture
def rounds(rig: Rig, request: pytest.FixtureRequest) -> int:
    count = ROUNDS_SOAK if request.config.getoption("--soak") else ROUNDS
    rig.deadline(120.0 + count * ROUND_SECONDS_MAX)
    return count


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return time.time_ns() % 10**9 if request.config.getoption("--soak") else 1


def test_the_server_is_killed_at_random_moments(rig: Rig, rounds: int, seed: int) -> None:
    """It comes back on the same port with the same state: nothing that was acknowledged is missing, nothing was
    done twice, no lock was held by two, programs saw no error."""
    world = World(rig, seed)
    for _ in range(2):
        world.load.start(world.mount())
    for _ in range(rounds):
        world.work(0.3 + 1.5 * world.random.random())
        world.kill_server()
        world.work(0.5 * world.random.random())
        world.restart_server()
    world.work(1.0)
    print(f"\n{rounds} servers killed: {world.verdict()}")
    for log in world.logs:
        assert "is lost with" not in log.read_text(), log.read_text()
    assert world.longest_pause() < 2 * (world.lease_seconds + MARGIN_SECONDS) + SLACK_SECONDS


def test_a_client_is_killed_at_random_moments(rig: Rig, rounds: int, seed: int) -> None:
    """The other goes on within the lease; what was closed or synchronised is there. Every other time the
    mount is made again on the same place, and the server told that the old client is gone."""
    world = World(rig, seed)
    survivor, victim = world.mount(), world.mount()
    world.load.start(survivor)
    for number in range(rounds):
        world.load.start(victim)
        world.work(0.5 + 1.5 * world.random.random())
        world.kill_client(victim)
        victim = world.mount(mountpoint=victim if number % 2 else None)
    world.work(world.lease_seconds + MARGIN_SECONDS)
    print(f"\n{rounds} clients killed: {world.verdict()}")
    assert world.longest_pause() < world.lease_seconds + MARGIN_SECONDS + SLACK_SECONDS


def test_the_connection_is_lost_for_less_than_a_lease(rig: Rig, rounds: int, seed: int) -> None:
    """By reset, by end, half open, unreachable, stalled: programs only notice a pause."""
    world = World(rig, seed, lease_seconds=5.0)
    with Proxy(rig, world.server.address) as proxy:
        near = world.mount(proxy)
        world.load.start(near)
        world.load.start(world.mount())
        for number in range(2 * rounds):
            world.work(0.3 + 0.7 * world.random.random())
            spoil(proxy, number, 1.5 * world.random.random(), world)
        world.work(1.0)
        figures = world.verdict()
    print(f"\n{2 * rounds} connections lost: {figures}")
    said = rig.log_of(near).read_text()
    assert "connected to the server again" in said
    assert "is lost" not in said.replace("the connection to the server is lost", ""), said
    assert world.longest_pause() < 5.0 + SLACK_SECONDS


def test_everything_happens_at_random(
    rig: Rig, rounds: int, seed: int, request: pytest.FixtureRequest
) -> None:
    """Servers, clients and connections in any order; the lease is long enough for two of them in a row."""
    if not request.config.getoption("--soak"):
        pytest.skip("with --soak only: each of these is tested by itself")
    world = World(rig, seed, lease_seconds=6.0)
    happened = Counter[str]()
    with Proxy(rig, world.server.address) as proxy:
        world.load.start(world.mount(proxy))
        victim = world.mount()
        world.load.start(victim)
        for number in range(rounds):
            world.work(0.3 + world.random.random())
            what = world.random.choice(("server", "client", "connection"))
            happened[what] += 1
            if what == "server":
                world.kill_server()
                world.work(0.3 * world.random.random())
                world.restart_server()
            elif what == "client":
                world.kill_client(victim)
                victim = world.mount(mountpoint=victim if number % 2 else None)
                world.load.start(victim)
            else:
                spoil(proxy, world.random.randrange(6), world.random.random(), world)
        world.work(1.0)
        print(f"\n{dict(happened)} killed or lost: {world.verdict()}")


def spoil(proxy: Proxy, number: int, seconds: float, world: World) -> None:
    """One of the things that happen to connections, for so long."""
    match number % 6:
        case 0:
            proxy.cut()
        case 1:
            proxy.cut(reset=False)
        case 2:
            proxy.refuse()
            proxy.cut()
            world.work(seconds)
            proxy.accept()
        case 3:
            proxy.swallow()
            world.work(seconds)
            proxy.cut()
            proxy.let_pass()
        case 4:
            proxy.stall(world.random.choice(("up", "down")))
            world.work(seconds)
            proxy.let_pass()
        case 5:
            proxy.delay(0.05)
            world.work(seconds)
            proxy.cut()
            proxy.delay(0)
