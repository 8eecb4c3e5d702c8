"""What a run is like, drawn from its seed: how many clients and processes, how slow links and kernels, how
small caches. Different runs so stress different things (Groce et al., Swarm Testing, ISSTA 2012)."""

from __future__ import annotations

from random import Random

from tests.sim.programs import RandomPrograms
from tests.sim.sizes import Sizes
from tests.sim.world import Options, Play


def drawn(seed: int) -> tuple[Options, RandomPrograms]:
    """The options and the programs of *seed*."""
    rng = Random(f"swarm {seed}")
    options = Options(
        seed,
        clients=rng.choice([2, 2, 3, 3, 4]),
        link_seconds_max=rng.choice([0.0001, 0.001, 0.001, 0.003]),
        kernel_seconds_max=rng.choice([0.0001, 0.0005, 0.0005, 0.002]),
        read_ahead_pages_max=rng.randint(1, 3),
        cache_bytes=rng.choice([64 << 10, 256 << 10]),
        dirty_bytes_max=rng.choice([16 << 10, 128 << 10]),
        check_every=rng.choice([3, 5, 7]),
    )
    programs = RandomPrograms(steps=rng.choice([12, 20, 30]), processes=rng.choice([1, 2, 2, 3]))
    options.killed = rng.choice([0.0, 0.0, 0.1])
    options.later = rng.choice([0.0, 0.5, 1.0, 1.0])
    return options, programs


def drawn_with_sizes(seed: int) -> tuple[Options, Play]:
    """The same, and sometimes programs that go by sizes instead."""
    options, programs = drawn(seed)
    rng = Random(f"sizes {seed}")
    if rng.random() < 0.2:
        return options, Sizes(busy=rng.random() < 0.5)
    return options, programs
