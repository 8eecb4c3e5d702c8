"""The lock manager: POSIX byte-range locks, OFD locks and flocks of all clients.

A pure machine: requests in, effects out, no clock and no waiting. Whoever calls it keeps the *ticket* of a
request and is told by an effect, at once or in the course of a later call, how the request ended: exactly one
effect per ticket. (One cancelled after its grant stays granted.)

The order of effects, in every list returned: first the answer to the call itself (its own grant or refusal;
the refusals of requests that the call ended), then the grants that it made possible, in the order in which
they were decided, which is the order of arrival unless one grant enables another.

Fairness. A request waits while a lock of another owner conflicts with it, and also while an earlier waiting
request of another owner does: readers that keep coming cannot starve a writer. POSIX does not ask for this.
It passes those earlier requests that wait, directly or through others, for its own owner; the reasons are in
`nfsfuse_server.machines.deadlock`. A request that must not wait is refused (EAGAIN) where it would have to
wait, for either reason: programs polling with F_SETLK would starve a writer just as well.

Deadlock. EDEADLK goes to the POSIX request that would close a cycle of owners each blocked by the next one's
lock, on whatever sessions and inodes. Linux excepts OFD locks, but does not tell FUSE which those are: a
caller that knows passes ``deadlock_checked=False``. One that does not know keeps promise 4 for POSIX locks,
and may report a deadlock to an OFD owner that another of its threads could have dissolved.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterable

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import WHOLE_FILE, HeldLock, LockKind, LockMode, LockRange, OwnedLock
from nfsfuse.protocol.types import InodeHandle, LockOpenId, LockOwner, SessionId
from nfsfuse_server.machines.deadlock import WaitsForGraph
from nfsfuse_server.machines.lock_check import check_books
from nfsfuse_server.machines.lock_effects import Denied, Effect, Granted
from nfsfuse_server.machines.lock_limits import Ledger, LockLimits
from nfsfuse_server.machines.lock_ranges import Segment, Splice
from nfsfuse_server.machines.lock_space import LockSpace, Party, Waiter


class LockManager:
    """All locks of one export."""

    def __init__(self, limits: LockLimits | None = None) -> None:
        self._spaces: dict[tuple[InodeHandle, LockKind], LockSpace] = {}
        self._graph = WaitsForGraph()
        self._ledger = Ledger(limits or LockLimits())
        self._waiting: dict[int, Waiter] = {}  # by ticket
        self._arrivals = 0

    # -- requests ------------------------------------------------------------------------------------------

    def request(
        self,
        session: SessionId,
        inode: InodeHandle,
        open_id: LockOpenId,
        owner: LockOwner,
        kind: LockKind,
        mode: LockMode,
        start: int,
        end: int,
        pid: int,
        wait: bool,
        ticket: int,
        *,
        deadlock_checked: bool = True,
    ) -> list[Effect]:
        """Lock, convert or unlock bytes *start* to *end*, both included (a flock: the whole file, whatever
        they are). No effect for *ticket* means that it waits. *ticket* must not be waiting already.

        A POSIX owner that waits for a conversion keeps what it has. A flock that cannot be upgraded at once
        is given up first, and is lost if the request may not wait or is cancelled (flock(2): "the existing
        lock is first removed, and then a new lock is established"): two readers that both upgrade would
        otherwise wait for each other, with no EDEADLK for flock to end it.
        """
        assert ticket not in self._waiting, f"ticket {ticket} waits already"
        party = Party(session, owner)
        try:
            span = WHOLE_FILE if kind is LockKind.FLOCK else LockRange(start, end)
        except FsError as exc:
            return [Denied(ticket, exc.errno)]
        self._graph.note_request(party)
        space = self._spaces.setdefault((inode, kind), LockSpace(inode, kind))
        segment = Segment(span.start, span.end, mode, open_id, pid)
        checked = deadlock_checked and kind is LockKind.POSIX
        waiter = Waiter(self._arrivals, ticket, space, party, segment, checked)
        self._arrivals += 1
        effects = self._decide(waiter, wait)
        self._tidy(space)
        return effects

    def _decide(self, waiter: Waiter, wait: bool) -> list[Effect]:
        if waiter.segment.mode is LockMode.UNLOCK or self._blocker(waiter) is None:
            answer, agenda = self._take(waiter)
            return [answer, *self._settle(agenda)]
        space, party = waiter.space, waiter.party
        if wait and not self._ledger.allows_waiter(space.inode, party.session):
            return [Denied(waiter.ticket, errno.ENOLCK)]
        if wait and self._graph.would_deadlock(waiter):
            return [Denied(waiter.ticket, errno.EDEADLK)]
        granted: list[Effect] = []
        if space.kind is LockKind.FLOCK:
            granted = self._settle(self._free(space, party, WHOLE_FILE))
        if not wait:
            return [Denied(waiter.ticket, errno.EAGAIN), *granted]
        return granted + self._enqueue(waiter)

    def _enqueue(self, waiter: Waiter) -> list[Effect]:
        blocker = self._blocker(waiter)
        assert blocker is not None, f"giving up a lock cleared the way for its own upgrade: {waiter}"
        waiter.space.put_behind(waiter, blocker)
        self._waiting[waiter.ticket] = waiter
        self._graph.add_waiter(waiter)
        self._ledger.add(waiter.space.inode, waiter.party.session, waiters=1)
        # A new wait may close a cycle through fairness edges; those in it count no more, so that others,
        # blocked until now by fairness alone, may go ahead.
        behind = self._graph.waiting_for(waiter.party)
        if not self._graph.closes_cycle(waiter, behind):
            return []
        return self._settle(w for party in behind for w in self._graph.parties[party].waiting.values())

    def cancel(self, ticket: int) -> list[Effect]:
        """The waiting program was interrupted. Nothing happens to a ticket that does not wait (any more):
        its effect was on the way already."""
        waiter = self._waiting.get(ticket)
        return [] if waiter is None else self._abandon([waiter], errno.EINTR, [])

    def test(
        self,
        session: SessionId,
        inode: InodeHandle,
        owner: LockOwner,
        kind: LockKind,
        mode: LockMode,
        start: int,
        end: int,
    ) -> HeldLock | None:
        """F_GETLK: the first lock held (not: waited for) by another owner that conflicts; None if a request
        would find none. With UNLOCK: the first lock of the owner itself. Raises `FsError` (EINVAL)."""
        span = WHOLE_FILE if kind is LockKind.FLOCK else LockRange(start, end)
        space = self._spaces.get((inode, kind))
        found = space and space.held.first_in_the_way(Party(session, owner), mode, span.start, span.end)
        return HeldLock(found.start, found.end, found.mode, found.pid) if found else None

    def holders_in_the_way(
        self, session: SessionId, inode: InodeHandle, owner: LockOwner, kind: LockKind, mode: LockMode,
        start: int, end: int,
    ) -> set[SessionId]:  # fmt: skip
        """Whose locks conflict with that."""
        span = WHOLE_FILE if kind is LockKind.FLOCK else LockRange(start, end)
        space = self._spaces.get((inode, kind))
        if space is None:
            return set()
        return {p.session for p in space.held.in_the_way(Party(session, owner), mode, span.start, span.end)}

    def in_the_way(self) -> set[SessionId]:
        """Sessions for whose locks somebody waits: at least one of those that each waits for."""
        blockers = (waiter.blocker for waiter in self._waiting.values())
        return {blocker.session for blocker in blockers if isinstance(blocker, Party)}

    def has_locks(self, session: SessionId) -> bool:
        """Whether *session* holds any."""
        usage = self._ledger.sessions.get(session)
        return usage is not None and usage.locks > 0

    # -- the ends of files, processes and sessions -----------------------------------------------------------

    def flush(self, session: SessionId, inode: InodeHandle, owner: LockOwner) -> list[Effect]:
        """A process closed a descriptor of *inode*: all POSIX locks it has on it go, through whichever
        descriptor they came (fcntl, "all locks associated with a file for a given process shall be
        removed"). Its waiting requests stay: they are other threads, and Linux leaves them alone too. OFD
        locks and flocks are no process's and stay until `release`."""
        space = self._spaces.get((inode, LockKind.POSIX))
        if space is None:
            return []
        effects = self._settle(self._free(space, Party(session, owner), WHOLE_FILE))
        self._tidy(space)
        return effects

    def release(
        self, session: SessionId, inode: InodeHandle, open_id: LockOpenId, owner: LockOwner | None = None
    ) -> list[Effect]:
        """An open file is gone: what was locked through it and is still held is dropped, of every kind and
        owner; the kernel sends no unlock for OFD locks and flocks. *owner*, which FUSE names when the open
        file was flocked (FUSE_RELEASE_FLOCK_UNLOCK), loses its flock whichever open file it was taken
        through. A request still waiting through it (the kernel keeps the file open for such) gets EBADF."""
        agenda: list[Waiter] = []
        abandoned: list[Waiter] = []
        for kind in LockKind:
            space = self._spaces.get((inode, kind))
            if space is None:
                continue
            queue = space.queue.values()
            abandoned += (w for w in queue if w.party.session == session and w.segment.open_id == open_id)
            for party in [p for p in space.held.parties() if p.session == session]:
                whole = kind is LockKind.FLOCK and party.owner == owner
                for seg in list(space.held.of(party)):
                    if whole or seg.open_id == open_id:
                        agenda += self._free(space, party, LockRange(seg.start, seg.end))
        return self._abandon(abandoned, errno.EBADF, agenda)

    def drop_session(self, session: SessionId) -> list[Effect]:
        """A client unmounted or lost its lease: all its locks and waiting requests go. The tickets of those
        are refused (ENOTCONN): there is nobody to read it, but somebody may keep them."""
        agenda: list[Waiter] = []
        abandoned: list[Waiter] = []
        for party, record in list(self._graph.parties.items()):
            if party.session != session:
                continue
            abandoned += record.waiting.values()
            for space in list(record.holds):
                agenda += self._free(space, party, WHOLE_FILE)
        return self._abandon(sorted(abandoned, key=lambda waiter: waiter.arrival), errno.ENOTCONN, agenda)

    # -- restarts --------------------------------------------------------------------------------------------

    def locks_of(self, session: SessionId) -> tuple[OwnedLock, ...]:
        """Everything *session* holds, in no particular but a repeatable order; each can be given to
        `reclaim`."""
        return tuple(
            OwnedLock(
                space.inode, seg.open_id, party.owner, space.kind, seg.mode, seg.start, seg.end, seg.pid
            )
            for party, record in self._graph.parties.items()
            if party.session == session
            for space in record.holds
            for seg in space.held.of(party)
        )

    def reclaim(self, session: SessionId, lock: OwnedLock) -> bool:
        """Take a lock back that *session* held before the server restarted. Never queued; it passes those
        that wait, being older than they are. False, and nothing changed: somebody else holds a conflicting
        lock (the client was too late), a limit, or this owner waits for a lock already - a client reclaims
        before it asks for anything new. Raises `FsError` (EINVAL) for what is no lock."""
        if lock.mode is LockMode.UNLOCK:
            raise FsError(errno.EINVAL, "an unlock cannot be reclaimed")
        span = WHOLE_FILE if lock.kind is LockKind.FLOCK else LockRange(lock.start, lock.end)
        party = Party(session, lock.owner)
        record = self._graph.parties.get(party)
        if record is not None and record.waiting:
            return False
        space = self._spaces.setdefault((lock.inode, lock.kind), LockSpace(lock.inode, lock.kind))
        free = not any(space.held.in_the_way(party, lock.mode, span.start, span.end))
        splice = space.held.of(party).plan_lock(
            Segment(span.start, span.end, lock.mode, lock.open_id, lock.pid)
        )
        reclaimed = free and self._ledger.allows_locks(space.inode, session, splice.growth)
        if reclaimed:
            self._apply(space, party, splice)
        self._tidy(space)
        return reclaimed

    # -- decisions -------------------------------------------------------------------------------------------

    def _blocker(self, waiter: Waiter) -> Party | Waiter | None:
        """Whom *waiter* has to wait for: a holder, or else an earlier waiter it may not pass; None if it can
        be granted now."""
        for holder in waiter.space.holders_in_the_way(waiter):
            return holder
        passable: set[Party] | None = None
        for earlier in waiter.space.waiters_in_the_way(waiter):
            if passable is None:
                passable = self._graph.waiting_for(waiter.party)
            if earlier.party not in passable:
                return earlier
        return None

    def _settle(self, agenda: Iterable[Waiter]) -> list[Effect]:
        """Look again at those whose blocker may have gone, in order of arrival; each either finds another
        blocker or is answered, and then those behind it are looked at as well."""
        effects: list[Effect] = []
        heap = [(waiter.arrival, waiter.ticket) for waiter in agenda]
        heapq.heapify(heap)
        while heap:
            waiter = self._waiting.get(heapq.heappop(heap)[1])
            if waiter is None:
                continue  # it came up twice, and was answered the first time
            blocker = self._blocker(waiter)
            if blocker is not None:
                waiter.space.put_behind(waiter, blocker)
                continue
            freed = self._dequeue(waiter)
            answer, more = self._take(waiter)
            effects.append(answer)
            for other in freed + more:
                heapq.heappush(heap, (other.arrival, other.ticket))
            self._tidy(waiter.space)
        return effects

    def _take(self, waiter: Waiter) -> tuple[Effect, list[Waiter]]:
        """Change what the party holds as *waiter*, with nobody in its way, asks; returns the answer and who
        should be looked at again: a lock in a lesser mode frees something too."""
        space, party, seg = waiter.space, waiter.party, waiter.segment
        ranges = space.held.of(party)
        unlock = seg.mode is LockMode.UNLOCK
        splice = ranges.plan_unlock(seg.start, seg.end) if unlock else ranges.plan_lock(seg)
        if not self._ledger.allows_locks(space.inode, party.session, splice.growth):
            return Denied(waiter.ticket, errno.ENOLCK), []
        self._apply(space, party, splice)
        return Granted(waiter.ticket), space.behind(party, seg.start, seg.end)

    def _abandon(self, waiters: list[Waiter], why: int, agenda: list[Waiter]) -> list[Effect]:
        """Refuse *waiters*; then settle *agenda* and those that waited behind them."""
        effects: list[Effect] = []
        for waiter in waiters:
            agenda = agenda + self._dequeue(waiter)
            self._tidy(waiter.space)
            effects.append(Denied(waiter.ticket, why))
        return effects + self._settle(agenda)

    # -- books -----------------------------------------------------------------------------------------------

    def _free(self, space: LockSpace, party: Party, span: LockRange) -> list[Waiter]:
        """Unlock *span*, which cuts no segment in two; returns who should be looked at again."""
        self._apply(space, party, space.held.of(party).plan_unlock(span.start, span.end))
        self._tidy(space)
        return space.behind(party, span.start, span.end)

    def _apply(self, space: LockSpace, party: Party, splice: Splice) -> None:
        space.held.apply(party, splice)
        self._graph.note_holding(party, space)
        self._ledger.add(space.inode, party.session, locks=splice.growth)

    def _dequeue(self, waiter: Waiter) -> list[Waiter]:
        del self._waiting[waiter.ticket]
        self._graph.remove_waiter(waiter)
        self._ledger.add(waiter.space.inode, waiter.party.session, waiters=-1)
        return waiter.space.remove(waiter)

    def _tidy(self, space: LockSpace) -> None:
        if not space:
            self._spaces.pop((space.inode, space.kind), None)

    def check(self) -> None:
        """Every invariant of the machine; raises AssertionError. For tests and simulation after every step:
        it costs about as much as asking once more for every lock and every waiter."""
        check_books(self._spaces, self._waiting, self._graph, self._ledger)
