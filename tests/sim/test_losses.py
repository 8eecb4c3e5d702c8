"""The books of what may be lost: what is allowed passes, and each thing that is not is found."""

from __future__ import annotations

import pytest

from nfsfuse.protocol.tokens import RANGE_END
from tests.helpers.history import History, Operation, Violation
from tests.helpers.losses import Account, Losses

HERE = ("file", 0)


class Books:
    """What programs on two clients do to one word, by hand."""

    def __init__(self) -> None:
        self.history = History()
        self.losses = Losses(self.history)

    def opened(self, client: str = "one") -> Account:
        account = self.losses.opening(client, "file")
        account.opened = True
        return account

    def writes(self, client: str = "one", *, answered: bool = True) -> Operation:
        operation = self.history.begin_write(client, HERE, self.history.new_value())
        self.losses.write_begins(client, HERE, operation)
        if answered:
            self.history.end(operation)
        return operation

    def reads(self, client: str, value: int) -> None:
        self.history.read(client, HERE, value, self.history.now())

    def syncs(self, account: Account, *, on_disk: bool = True) -> None:
        self.losses.synced(self.losses.sync_begins(account), on_disk=on_disk)

    def is_told(self, account: Account) -> None:
        self.losses.failed(self.losses.sync_begins(account), is_refused=False)

    def loses(self, client: str = "one", start: int = 0, end: int = RANGE_END) -> None:
        self.losses.lost(client, "file", start, end)

    def check(self) -> None:
        self.losses.settle()
        self.history.check()


def test_what_was_not_synced_may_be_lost_although_its_client_has_read_it() -> None:
    books = Books()
    write = books.writes()
    books.reads("one", write.value)
    books.loses()
    books.reads("one", 0)
    books.reads("two", 0)
    books.check()


def test_it_may_also_have_been_written_back_before() -> None:
    books = Books()
    write = books.writes()
    books.loses()
    books.reads("two", write.value)
    books.reads("one", write.value)
    books.check()
    books.reads("two", 0)
    with pytest.raises(Violation, match="at once"):
        books.history.check()


def test_what_was_synced_is_not_lost() -> None:
    books = Books()
    account, write = books.opened(), books.writes()
    books.syncs(account, on_disk=False)
    books.loses()
    books.reads("one", 0)
    with pytest.raises(Violation, match=f"{write.value:#x}"):
        books.check()


def test_nothing_is_lost_that_was_not_dropped() -> None:
    books = Books()
    books.writes()
    books.loses("two")
    books.loses(start=8)
    books.reads("one", 0)
    with pytest.raises(Violation, match="at once"):
        books.check()


def test_a_write_that_is_not_answered_when_data_are_lost_may_be_lost_later() -> None:
    books = Books()
    write = books.writes(answered=False)
    books.loses()
    books.history.end(write)
    books.reads("one", write.value)
    books.loses()
    books.reads("two", 0)
    books.check()


def test_a_late_write_back_over_what_is_newer_is_found() -> None:
    books = Books()
    old = books.writes("one")
    books.loses("one")
    new = books.writes("two")
    books.reads("two", new.value)
    books.reads("two", old.value)
    with pytest.raises(Violation, match="as it was before"):
        books.check()


def test_a_client_that_reads_what_it_has_lost_after_others_know_better_is_found() -> None:
    books = Books()
    old = books.writes("one")
    books.reads("two", 0)
    books.reads("one", old.value)
    books.loses("one")
    with pytest.raises(Violation, match="as it was before"):
        books.check()


def test_a_loss_is_told_once_to_each_who_has_the_file_open_and_to_nobody_else() -> None:
    books = Books()
    one, other, elsewhere = books.opened(), books.opened(), books.opened("two")
    books.writes()
    books.loses()
    late = books.opened()
    with pytest.raises(Violation, match="was not told"):
        books.syncs(one)
    books.is_told(one)
    books.syncs(one)
    books.is_told(other)
    for account in one, elsewhere, late:
        with pytest.raises(Violation, match="that there was not"):
            books.is_told(account)


def test_of_a_client_that_was_killed_what_it_had_closed_is_there() -> None:
    books = Books()
    account, closed = books.opened(), books.writes()
    books.syncs(account, on_disk=False)
    books.writes()
    books.losses.died("one")
    books.reads("two", closed.value)
    books.check()
    assert books.losses.losses == 1


def test_after_a_power_failure_the_disk_has_what_was_fsynced_or_something_later() -> None:
    books = Books()
    account, closed = books.opened(), books.writes()
    books.syncs(account, on_disk=False)
    books.losses.check_disk({HERE: 0})
    books.losses.check_disk({HERE: closed.value})
    fsynced = books.writes()
    books.syncs(account)
    later = books.writes()
    books.losses.check_disk({HERE: fsynced.value})
    books.losses.check_disk({HERE: later.value})
    for value in 0, closed.value:
        with pytest.raises(Violation):
            books.losses.check_disk({HERE: value})
