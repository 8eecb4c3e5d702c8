"""What a server does with the state that earlier ones have left, before it listens."""

from __future__ import annotations

import logging
from dataclasses import replace

from nfsfuse.protocol.record import record
from nfsfuse_server.state.interface import Log, Registry, Start
from nfsfuse_server.state.journal import Journal
from nfsfuse_server.state.settle import look, settle
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)


@record(frozen=True, slots=True)
class Recovered:
    """A start, and what goes on from it."""

    start: Start
    registry: Registry
    journal: Journal


def recover(
    storage: Storage,
    registry: Registry,
    records: Log,
    boot_id: str,
    lease_seconds: float,
    *,
    reclaimable: bool = True,
) -> Recovered:
    """Begin a new epoch, with leases of *lease_seconds*: settle what was going on when the last one ended. If
    not *reclaimable* (the storage's handles do not outlive a process) all of that is forgotten instead. Blocks
    on the disk. Raises StateError; OSError if the journal cannot be written."""
    start = registry.start(boot_id, lease_seconds)
    known = {session.id for session in start.sessions}
    journal = Journal(records)
    if not reclaimable:
        registry.remove(known)
        registry.granting()
        journal.begin(())
        return Recovered(replace(start, sessions=()), registry, journal)
    for intent in journal.load():
        outcome = (look if start.rebooted else settle)(storage, intent)
        log.info(
            "%s of session %s was under way: %s", type(intent.message).__name__, intent.session.hex()[:8],
            "not done" if outcome is None else f"done: {outcome}",
        )  # fmt: skip
        if outcome is not None:
            journal.settled(intent, outcome)
    journal.begin(known)
    return Recovered(start, registry, journal)
