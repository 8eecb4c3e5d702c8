"""The waits-for graph of lock owners, over all sessions and inodes.

A party waits for another in one of two ways:

* for a *holder*, whose lock conflicts with what it asks for;
* for an *earlier waiter*, whose request conflicts with it: that edge is there for fairness only.

A cycle of holder edges alone is a deadlock: none of its parties can ever release. fcntl(2) wants EDEADLK for
the request that would close it. Like Linux (``posix_locks_deadlock``) we look at owners, not at threads: of a
process whose threads lock independently, a cycle may be reported that one of its threads would have ended.
flock takes no part, as on Linux, nor does a request that says so (OFD locks, which no single process owns).

A cycle with a fairness edge in it is no deadlock but would become one if fairness insisted. The rule chosen:
**a request does not wait behind an earlier waiter that itself waits, directly or through others, for the
owner of the request** - it passes. In words of graphs: fairness edges within a strongly connected component
do not count. All kinds of locks take part in this, since fairness must hang nobody. Rejected: to let only
holders of an overlapping lock pass (a cycle may run over several inodes), and to answer EDEADLK (a program
correct on a local filesystem, whose locks are not fair, would fail here). What the rule cannot see: a program
that waits for itself under two owners, like a parent that holds a READ lock and waits for a child that asks
for one behind a waiting writer. That is the price of fairness, as with every fair readers-writer lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nfsfuse_server.machines.lock_space import LockSpace, Party, Waiter


@dataclass(slots=True)
class PartyRecord:
    """Where a party is to be found in the graph. *concurrent*: it asked for something while one of its
    requests waited, hence has several threads; a cycle through it proves nothing until the wait is over."""

    holds: dict[LockSpace, None] = field(default_factory=dict)
    waiting: dict[int, Waiter] = field(default_factory=dict)  # by arrival
    concurrent: bool = False


class WaitsForGraph:
    """The edges are not stored but read off the lock spaces, so that they are never stale. They are followed
    backwards, from a party to those that wait for it: most parties have nobody waiting for them, and the
    search is over at once."""

    def __init__(self) -> None:
        self.parties: dict[Party, PartyRecord] = {}

    def add_waiter(self, waiter: Waiter) -> None:
        """*waiter* was queued."""
        self.parties.setdefault(waiter.party, PartyRecord()).waiting[waiter.arrival] = waiter

    def remove_waiter(self, waiter: Waiter) -> None:
        """*waiter* left its queue, whatever the reason."""
        record = self.parties[waiter.party]
        del record.waiting[waiter.arrival]
        if not record.waiting:
            record.concurrent = False
        self._forget_if_idle(waiter.party)

    def note_request(self, party: Party) -> None:
        """*party* asks for something just now."""
        record = self.parties.get(party)
        if record is not None and record.waiting:
            record.concurrent = True

    def note_holding(self, party: Party, space: LockSpace) -> None:
        """What *party* holds in *space* has changed."""
        if len(space.held.of(party)):
            self.parties.setdefault(party, PartyRecord()).holds[space] = None
        elif party in self.parties:
            self.parties[party].holds.pop(space, None)
            self._forget_if_idle(party)

    def waiting_for(self, party: Party) -> set[Party]:
        """All that wait for *party*, directly or through others, in either way."""
        return _closure(party, self._waiters_on)

    def would_deadlock(self, waiter: Waiter) -> bool:
        """Whether *waiter*, which is not queued yet, would close a cycle of holder edges."""
        if not waiter.deadlock_checked:
            return False
        behind = _closure(waiter.party, self._blocked_by_locks_of)
        return bool(behind) and any(p in behind for p in waiter.space.holders_in_the_way(waiter))

    def closes_cycle(self, waiter: Waiter, waiting_for: set[Party]) -> bool:
        """Whether *waiter* waits, in either way, for one of those that wait for it (`waiting_for`)."""
        return bool(waiting_for) and (
            any(party in waiting_for for party in waiter.space.holders_in_the_way(waiter))
            or any(earlier.party in waiting_for for earlier in waiter.space.waiters_in_the_way(waiter))
        )

    def _waiters_on(self, party: Party) -> Iterator[Party]:
        yield from (waiter.party for waiter in self._waiters_for_locks_of(party))
        for own in self._record(party).waiting.values():
            yield from (later.party for later in own.space.waiters_behind(own))

    def _blocked_by_locks_of(self, party: Party) -> Iterator[Party]:
        yield from (waiter.party for waiter in self._waiters_for_locks_of(party) if waiter.deadlock_checked)

    def _waiters_for_locks_of(self, party: Party) -> Iterator[Waiter]:
        for space in self._record(party).holds:
            yield from space.waiters_for_locks_of(party)

    def _record(self, party: Party) -> PartyRecord:
        return self.parties.get(party) or PartyRecord()

    def _forget_if_idle(self, party: Party) -> None:
        record = self.parties[party]
        if not record.holds and not record.waiting:
            del self.parties[party]

    def check(self) -> None:
        """No deadlock stands among owners of one thread each; nobody is remembered for nothing."""
        for party, record in self.parties.items():
            assert record.holds or record.waiting, f"{party} is remembered for nothing"
            assert record.waiting or not record.concurrent, f"{party} is idle and still counts as concurrent"
        sequential = {party for party, record in self.parties.items() if not record.concurrent}
        cycle = _cycle(sequential, self._blocked_by_locks_of)
        assert not cycle, f"deadlock: {cycle}"


def _closure(start: Party, edges: Callable[[Party], Iterable[Party]]) -> set[Party]:
    """All that can be reached from *start* over at least one edge."""
    reached: set[Party] = set()
    frontier = [start]
    while frontier:
        for party in edges(frontier.pop()):
            if party not in reached:
                reached.add(party)
                frontier.append(party)
    return reached


def _cycle(nodes: set[Party], edges: Callable[[Party], Iterable[Party]]) -> set[Party]:
    """What is left of *nodes* once those that nothing leads to are taken away again and again (Kahn):
    empty exactly if there is no cycle; otherwise the cycles and what they lead to."""
    followers = {node: {other for other in edges(node) if other in nodes} for node in nodes}
    indegree = dict.fromkeys(nodes, 0)
    for others in followers.values():
        for other in others:
            indegree[other] += 1
    free = [node for node, count in indegree.items() if not count]
    left = set(nodes)
    while free:
        node = free.pop()
        left.remove(node)
        for other in followers[node]:
            indegree[other] -= 1
            if not indegree[other]:
                free.append(other)
    return left
