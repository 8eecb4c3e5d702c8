"""The invariants of the lock manager as a whole: that its books (queues, graph, ledger) tell one story.

What a part can say for itself is checked by the part: `LockSpace.check`, `WaitsForGraph.check`,
`Ledger.check`.
"""

from __future__ import annotations

from collections.abc import Mapping

from nfsfuse.protocol.locks import WHOLE_FILE, LockKind
from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.machines.deadlock import WaitsForGraph
from nfsfuse_server.machines.lock_limits import Ledger
from nfsfuse_server.machines.lock_space import LockSpace, Party, Waiter


def check_books(
    spaces: Mapping[tuple[InodeHandle, LockKind], LockSpace],
    waiting: Mapping[int, Waiter],
    graph: WaitsForGraph,
    ledger: Ledger,
) -> None:
    """Raises AssertionError. Costs about as much as asking once more for every lock and every waiter."""
    counted = Ledger(ledger.limits)
    holds: set[tuple[Party, LockSpace]] = set()
    for key, space in spaces.items():
        assert key == (space.inode, space.kind), f"a misplaced space: {key}"
        assert space, f"an empty space is kept: {key}"
        space.check()
        for party in space.held.parties():
            ranges = space.held.of(party)
            whole = all((seg.start, seg.end) == (WHOLE_FILE.start, WHOLE_FILE.end) for seg in ranges)
            assert whole or space.kind is LockKind.POSIX, f"a flock on a part of a file: {party}"
            holds.add((party, space))
            counted.add(space.inode, party.session, locks=len(ranges))
        for waiter in space.queue.values():
            _check_waiter(waiter, space, waiting, graph)
            counted.add(space.inode, waiter.party.session, waiters=1)
    queued = sum(len(space.queue) for space in spaces.values())
    assert queued == len(waiting), "a ticket waits in no queue"
    known = graph.parties.items()
    assert holds == {(party, space) for party, record in known for space in record.holds}, "wrong holders"
    assert queued == sum(len(record.waiting) for _, record in known), "the graph knows of other waiters"
    assert (counted.inodes, counted.sessions) == (ledger.inodes, ledger.sessions), "miscounted"
    ledger.check()
    graph.check()


def _check_waiter(
    waiter: Waiter, space: LockSpace, waiting: Mapping[int, Waiter], graph: WaitsForGraph
) -> None:
    assert waiting.get(waiter.ticket) is waiter, f"waits without a ticket: {waiter}"
    assert waiter.space is space, f"in the wrong queue: {waiter}"
    record = graph.parties.get(waiter.party)
    assert record is not None, f"not in the graph: {waiter}"
    assert record.waiting.get(waiter.arrival) is waiter, f"not in the graph: {waiter}"
    if isinstance(waiter.blocker, Waiter):
        passable = waiter.blocker.party in graph.waiting_for(waiter.party)
        assert not passable, f"{waiter} waits behind one that waits for it: {waiter.blocker}"
