"""What a run in which things go wrong is like, drawn from its seed (see `tests.sim.swarm`)."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.sim.fault_programs import FaultPrograms
from tests.sim.faults import FINISH_SECONDS, LEASE_SECONDS, Kind, drawn
from tests.sim.world import Options


def options(seed: int, clients: int = 3) -> Options:
    """A world in which leases end."""
    return Options(
        seed, clients, lease_seconds=LEASE_SECONDS, finish_seconds=FINISH_SECONDS, check_every=5
    )  # fmt: skip


def drawn_with_faults(seed: int) -> tuple[Options, FaultPrograms]:
    """The options and the programs of *seed*."""
    rng = Random(f"fault swarm {seed}")
    made = options(seed, rng.choice([2, 3, 3, 4]))
    made.link_seconds_max = rng.choice([0.0001, 0.001, 0.001, 0.003])
    made.kernel_seconds_max = rng.choice([0.0001, 0.0005, 0.0005, 0.002])
    made.cache_bytes = rng.choice([64 << 10, 256 << 10])
    made.dirty_bytes_max = rng.choice([8 << 10, 16 << 10, 128 << 10])
    programs = FaultPrograms(drawn(seed), processes=rng.choice([1, 2, 2, 3]))
    made.later = rng.choice([0.0, 0.5, 1.0, 1.0])
    return made, programs


def strikes(*kinds: Kind, times: int = 2) -> Counter[Kind]:
    """Each of *kinds* so often; one that is named several times, so much oftener."""
    return Counter({kind: kinds.count(kind) * times for kind in kinds})
