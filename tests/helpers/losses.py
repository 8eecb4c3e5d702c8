"""Which writes may be lost, and who has to be told: what programs may rely on when not everything goes well.

A write that a client took in is *unsynced* until an fsync or close that began after it has returned 0: then
it is *synced* for good. When a client loses dirty data of a range (it was fenced, the server refused them to
the end, it was killed) its unsynced writes there *may be lost*: they may have been written back before.
Whether one is shows in what was read later: one that nobody saw afterwards is taken out of the history
together with the reads that its own client made of it before. What is left must be one register for each word,
as if it had never been: a history that is linearizable stays so without one write and all reads of its value.

Everybody who has the file open when something goes wrong with it is told by the next fsync or close, once
(errseq_t of Linux), and nobody is told of what was not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nfsfuse.protocol.tokens import RANGE_END
from tests.helpers.history import NEVER, History, Location, Operation, Violation


@dataclass(slots=True, eq=False)
class Account:
    """One open file, and what it is owed. *may_be_told* of what went wrong since it began to be opened;
    *owed*: it must be told of what was lost since it was open."""

    client: str
    file: str
    opened: bool = False
    may_be_told: bool = False
    owed: bool = False


@dataclass(slots=True)
class Syncing:
    """An fsync or close under way: what it makes safe, and whether it has to fail."""

    account: Account
    safe: list[Operation]
    owed: bool


@dataclass(slots=True)
class Losses:
    """The books of all clients. Files by name, clients too."""

    history: History
    losses: int = 0
    """How often a client has lost data of a range."""
    told: int = 0
    """How many calls have told of an error."""
    _unsynced: dict[tuple[str, str], list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _locations: dict[Operation, Location] = field(default_factory=dict)
    _lost_at: dict[Operation, int] = field(default_factory=dict)
    _synced: set[Operation] = field(default_factory=set)
    _on_disk: set[Operation] = field(default_factory=set)
    _accounts: dict[Account, None] = field(default_factory=dict)

    # --- what programs do ---

    def opening(self, client: str, file: str) -> Account:
        """A program begins to open *file*; once it has, *opened* is to be set."""
        account = Account(client, file)
        self._accounts[account] = None
        return account

    def write_begins(self, client: str, location: Location, operation: Operation) -> None:
        """One word of a file is being written."""
        self._locations[operation] = location
        self._unsynced[client, location[0]].append(operation)

    def sync_begins(self, account: Account) -> Syncing:
        """fsync(2) or close(2) of a file that is open for writing."""
        unsynced = self._unsynced[account.client, account.file]
        safe = [each for each in unsynced if each.end != NEVER and each not in self._lost_at]
        return Syncing(account, safe, account.owed)

    def synced(self, sync: Syncing, *, on_disk: bool) -> None:
        """It has returned 0; *on_disk*: it was an fsync. Raises Violation if it should have told an error."""
        account = sync.account
        if sync.owed:
            raise Violation(f"{account.client} was not told that it had lost data of {account.file}")
        self._synced.update(sync.safe)
        if on_disk:
            self._on_disk.update(sync.safe)
        left = self._unsynced[account.client, account.file]
        left[:] = [each for each in left if each not in self._synced]

    def failed(self, sync: Syncing, *, is_refused: bool) -> None:
        """It has told an error; *is_refused*: the server refuses data of the file right now. Raises Violation
        if there was nothing to tell."""
        account = sync.account
        if not (account.may_be_told or is_refused):
            raise Violation(f"{account.client} was told of an error in {account.file} that there was not")
        account.may_be_told = account.owed = False
        self.told += 1

    def closed(self, account: Account) -> None:
        """The file is not open any more."""
        self._accounts.pop(account, None)

    # --- what goes wrong ---

    def reported(self, client: str, file: str) -> None:
        """*client* will report something that went wrong with *file*: whoever opens it now may be told, too."""
        for account in self._of(client, file):
            account.may_be_told = True

    def lost(self, client: str, file: str, start: int, end: int, *, stays: bool = False) -> None:
        """*client* has dropped dirty data of the bytes ``[start, end)`` of *file*. *stays*: its kernel has not
        yet (`dropped`), and its own programs may go on seeing them."""
        self.losses += 1
        now = NEVER if stays else self.history.now()
        unsynced = self._unsynced[client, file]
        gone = [each for each in unsynced if start <= self._locations[each][1] < end]
        self._lost_at.update(dict.fromkeys(gone, now))
        # One that is not answered yet may be taken in only now: it stays in doubt, and may be lost again.
        unsynced[:] = [each for each in unsynced if each not in gone or each.end == NEVER]
        for account in self._of(client, file):
            account.may_be_told = True
            account.owed |= account.opened

    def dropped(self, client: str, file: str, start: int, end: int) -> None:
        """Of what *client* has lost in ``[start, end)`` nothing stays any more: its kernel has dropped it."""
        now = self.history.now()
        for each, at in self._lost_at.items():
            name, offset = self._locations[each]
            if at == NEVER and (each.client, name) == (client, file) and start <= offset < end:
                self._lost_at[each] = now

    def died(self, client: str) -> None:
        """*client* is dead: what was not synced may be lost, and nobody is left to be told."""
        for owner, file in list(self._unsynced):
            if owner == client:
                self.lost(owner, file, 0, RANGE_END)
        for account in [each for each in self._accounts if each.client == client]:
            del self._accounts[account]

    def _of(self, client: str, file: str) -> list[Account]:
        return [each for each in self._accounts if (each.client, each.file) == (client, file)]

    # --- judgement ---

    def settle(self) -> None:
        """Take out of the history what was lost, so that the rest can be checked. Raises Violation if a client
        read what it had lost after another one knew better."""
        lost = {each: at for each, at in self._lost_at.items() if each not in self._synced}
        for location, operations in self.history.operations.items():
            _check_none_is_stale(location, operations, lost)
            self.history.operations[location] = _without_unseen(operations, lost)

    def check_disk(self, words: dict[Location, int]) -> None:
        """After a power failure the disk holds *words*. Raises Violation if what was fsynced is not there.
        Before `settle`."""
        after = History()
        for location, operations in self.history.operations.items():
            value = words[location]
            gone = {
                each.value
                for each in operations
                if each.is_write and each not in self._on_disk and each.value != value
            }
            after.operations[location] = [each for each in operations if each.value not in gone]
            now = self.history.now()
            after.operations[location].append(Operation("the disk", False, False, value, now, now + 1))
        after.check()


def _check_none_is_stale(location: Location, operations: list[Operation], lost: dict[Operation, int]) -> None:
    """Once another client has read or written the word without it, nobody reads a write that was lost. (That is
    so of what was not lost, too, and checked with the rest.)"""
    doubtful = {write.value for write in operations if write in lost}
    for write in operations:
        if write not in lost:
            continue
        known_at = min(
            (
                each.end
                for each in operations
                if each.client != write.client and each.value not in doubtful and each.begin > write.end
            ),
            default=NEVER,
        )
        for read in operations:
            if read.value == write.value and not read.is_write and read.begin > known_at:
                raise Violation(f"{location}: {read}, as it was before {known_at}", location)


def _without_unseen(operations: list[Operation], lost: dict[Operation, int]) -> list[Operation]:
    """All but the lost writes that nobody has read since, and the reads that their own clients made before."""
    writes = {write.value: write for write in operations if write in lost}
    seen = {
        read.value
        for read in operations
        if not read.is_write
        and (write := writes.get(read.value)) is not None
        and (read.client != write.client or read.begin > lost[write])
    }
    return [each for each in operations if each.value not in writes or each.value in seen]
