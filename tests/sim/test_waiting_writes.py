"""A write(2) that waits in the daemon while its page is recalled."""

from __future__ import annotations

from tests.sim.programs import RandomPrograms
from tests.sim.world import Options, simulate


def test_a_cached_write_is_not_lost_when_its_page_is_recalled_before_the_daemon_has_it() -> None:
    """write(2) copies into an up-to-date page and unlocks it. A recall takes the page away; the page is read in
    again, without the write; then the daemon absorbs the FUSE_WRITE, and the kernel's page lacks it. The next
    store into that page writes all of it back, and the write is gone."""
    simulate(Options(120, 2, check_every=3, write_directly=False), RandomPrograms(30, cached_writes=True))
