"""The checker of the fault tests can fail: an honest history passes, and each lie about it is found."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.proof.load.check import longest_pauses, violations
from scripts.proof.load.journal import History, Journal, Operation, read, read_all
from scripts.proof.load.worker import RECORD_SIZE, SLOT, prepare


class World:
    """Two workers' histories and an export, made by hand. Each operation takes one unit of time, as told."""

    def __init__(self, directory: Path) -> None:
        self.export = directory
        prepare(directory)
        self.histories = [History("a-0", complete=True), History("b-1", complete=True)]
        self.dead: set[str] = set()
        self._now = 0

    def did(self, worker: int, what: str, error: int | None = 0, took: int = 1, **facts: Any) -> Operation:
        began, self._now = self._now, self._now + took + 1
        history = self.histories[worker]
        number = len(history.operations) + 1
        ended = None if error is None else began + took
        operation = Operation(history.worker, number, what, facts, began, ended, error)
        history.operations.append(operation)
        return operation

    def find(self, worker: int, what: str, which: int = -1) -> Operation:
        found = [operation for operation in self.histories[worker].operations if operation.what == what]
        return found[which]

    def word(self, name: str, value: int, slot: int = 0) -> None:
        path = self.export / name
        data = bytearray(path.read_bytes()) if path.exists() else bytearray(SLOT.size)
        SLOT.pack_into(data, slot * SLOT.size, value)
        path.write_bytes(data)

    def violations(self) -> list[str]:
        return violations(self.histories, self.export, self.dead)


def record(worker: str, number: int) -> bytes:
    return f"{worker} {number}".encode().ljust(RECORD_SIZE - 1) + b"\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Something of everything, and all of it true."""
    it = World(tmp_path)
    it.did(0, "create", name="00000001")
    it.did(1, "create", errno.EEXIST, name="00000001")
    it.did(0, "publish", name="00000001")
    (tmp_path / "names" / "00000001").write_text("a-0")
    it.did(0, "step", to=0)
    it.did(0, "step", to=1)
    (tmp_path / "renames" / "step-a-0-1").touch()
    it.did(0, "take")
    it.did(1, "take", errno.ENOENT)
    it.did(0, "give")
    it.did(1, "take")
    it.did(1, "give")
    for number in range(3):
        it.did(0, "append", number=number)
        it.did(1, "append", number=number)
        with (tmp_path / "log").open("ab") as log:
            log.write(record("b-1", number) + record("a-0", number))
    it.did(0, "sync")
    it.did(0, "append", number=3)
    with (tmp_path / "log").open("ab") as log:
        log.write(record("a-0", 3))
    it.did(0, "put", slot=0, value=1)
    it.did(0, "put", slot=0, value=2)
    it.word("records-a-0", 2)
    for found, worker in enumerate((0, 1, 0)):
        it.did(worker, "lock", kind="posix")
        it.did(worker, "count", kind="posix", found=found)
        it.did(worker, "unlock", kind="posix")
    it.word("count-posix", 3)
    it.did(0, "store", slot=0, value=1)
    it.did(1, "look", page={"0": 1})
    it.did(0, "msync")
    it.did(0, "store", slot=0, value=2)
    it.did(1, "look", page={"0": 2})
    it.word("page", 2)
    return it


def test_the_truth_passes(world: World) -> None:
    assert world.violations() == []


def lie(text: str) -> Callable[[Callable[[World], None]], Any]:
    """A way to spoil the world, and what is said of it."""
    return lambda spoil: pytest.param(spoil, text, id=spoil.__name__)


@lie("was told Input/output error")
def an_error(world: World) -> None:
    world.find(1, "append").error = errno.EIO


@lie("b-1 did not come to its end")
def no_end(world: World) -> None:
    world.histories[1].complete = False


@lie("created 2 times: 00000001")
def a_second_creator(world: World) -> None:
    world.did(1, "create", name="00000001")


@lie("it exists, and nobody has made it (done twice?)")
def a_create_that_was_repeated(world: World) -> None:
    world.did(0, "create", errno.EEXIST, name="00000002")
    (world.export / "names" / "00000002").touch()


@lie("it exists, and nobody has made it (done twice?)")
def a_name_that_is_made_later(world: World) -> None:
    world.did(0, "create", errno.EEXIST, name="00000002")
    world.did(1, "create", name="00000002")
    (world.export / "names" / "00000002").touch()


@lie("created, and missing: 00000001")
def a_file_is_missing(world: World) -> None:
    (world.export / "names" / "00000001").unlink()


@lie("created by a-0, and has ''")
def content_is_missing(world: World) -> None:
    (world.export / "names" / "00000001").write_text("")


@lie("there, and nobody has created it: 00000009")
def a_file_from_nowhere(world: World) -> None:
    (world.export / "names" / "00000009").touch()


@lie("a-0 renamed to step 1, and there is [0]")
def a_rename_is_lost(world: World) -> None:
    (world.export / "renames" / "step-a-0-1").rename(world.export / "renames" / "step-a-0-0")


@lie("a-0 renamed to step 1, and there is [1, 2]")
def a_rename_left_its_source(world: World) -> None:
    (world.export / "renames" / "step-a-0-2").touch()


@lie("the ball was taken by two")
def two_take_the_ball(world: World) -> None:
    world.find(1, "take").ended = world.find(0, "take").began + 1
    world.find(1, "give").began = world.find(0, "give").ended or 0


@lie("there is one ball, and now: []")
def no_ball(world: World) -> None:
    (world.export / "renames" / "ball").unlink()


@lie("a-0 appended [1], and that is missing")
def a_record_is_missing(world: World) -> None:
    data = (world.export / "log").read_bytes()
    (world.export / "log").write_bytes(data.replace(record("a-0", 1), b""))


@lie("a-0 appended record 2 once, and it is there 2 times")
def a_record_is_there_twice(world: World) -> None:
    with (world.export / "log").open("ab") as log:
        log.write(record("a-0", 2))


@lie("not a record")
def a_record_is_torn(world: World) -> None:
    data = bytearray((world.export / "log").read_bytes())
    data[10 : RECORD_SIZE + 10] = bytes(RECORD_SIZE)
    (world.export / "log").write_bytes(data)


@lie("the log ends in a part of a record")
def half_a_record(world: World) -> None:
    with (world.export / "log").open("ab") as log:
        log.write(b"a-0 4")


@lie("a-0 never wrote [7]")
def a_record_from_nowhere(world: World) -> None:
    with (world.export / "log").open("ab") as log:
        log.write(record("a-0", 7))


@lie("the records of b-1 are not in order")
def records_change_places(world: World) -> None:
    data = (world.export / "log").read_bytes()
    one, two = record("b-1", 0), record("b-1", 1)
    (world.export / "log").write_bytes(data.replace(one, b"#" * 32).replace(two, one).replace(b"#" * 32, two))


@lie("records of c-2, who is unknown")
def a_stranger(world: World) -> None:
    with (world.export / "log").open("ab") as log:
        log.write(record("c-2", 0))


@lie("a-0 synchronised 2 in record 0, and there is 1")
def an_old_record(world: World) -> None:
    world.word("records-a-0", 1)


@lie("the lock posix was held by two")
def two_hold_a_lock(world: World) -> None:
    world.find(1, "lock").ended = world.find(0, "count", 0).began


@lie("an update is lost")
def an_increment_is_overwritten(world: World) -> None:
    world.find(1, "count").facts["found"] = 0


@lie("3 increments under posix, 0 perhaps, and the count is 2")
def an_increment_is_missing(world: World) -> None:
    world.word("count-posix", 2)


@lie("3 increments under posix, 0 perhaps, and the count is 4")
def an_increment_too_many(world: World) -> None:
    world.word("count-posix", 4)


@lie("a-0 stored 2 in word 0, and there is 1")
def a_store_is_lost(world: World) -> None:
    world.word("page", 1)


@lie("b-1:7 saw 1 in word 0, and before 2: it was stored by a-0")
def a_stale_load(world: World) -> None:
    world.find(1, "look").facts["page"] = {"0": 1}
    world.find(1, "look").number = 7


@lie("a-0:9 saw 1 in word 0, and before 2: b-1:8 saw it")
def a_word_goes_back(world: World) -> None:
    world.find(1, "look").number = 8
    world.histories[0].operations.remove(world.find(0, "store"))
    world.did(0, "look", page={"0": 1}).number = 9


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        an_error, no_end, a_second_creator, a_create_that_was_repeated, a_name_that_is_made_later,
        a_file_is_missing, content_is_missing, a_file_from_nowhere, a_rename_is_lost, a_rename_left_its_source,
        two_take_the_ball, no_ball, a_record_is_missing, a_record_is_there_twice, a_record_is_torn,
        half_a_record, a_record_from_nowhere, records_change_places, a_stranger, an_old_record,
        two_hold_a_lock, an_increment_is_overwritten, an_increment_is_missing, an_increment_too_many,
        a_store_is_lost, a_stale_load, a_word_goes_back,
    ],
)  # fmt: skip
def test_a_lie_is_found(world: World, spoil: Callable[[World], None], text: str) -> None:
    spoil(world)
    assert any(text in found for found in world.violations()), world.violations()


def test_the_dead_may_lose_what_they_had_not_settled_and_nothing_else(world: World) -> None:
    world.dead = {"a-0"}
    world.histories[0].complete = False
    world.did(0, "append", errno.ENOTCONN, number=4)
    world.did(0, "put", None, slot=0, value=3)
    world.word("records-a-0", 3)
    world.did(0, "create", errno.ENOTCONN, name="00000005")
    (world.export / "names" / "00000005").touch()
    assert world.violations() == []
    data = (world.export / "log").read_bytes()
    (world.export / "log").write_bytes(data.replace(record("a-0", 3), b""))
    world.word("page", 1)
    world.find(1, "look").facts["page"] = {"0": 1}
    world.did(0, "look", page={"0": 2})
    world.did(1, "look", page={"0": 1})
    assert world.violations() == []
    (world.export / "log").write_bytes(data.replace(record("a-0", 2), b""))
    world.word("page", 0)
    world.find(1, "look").facts["page"] = {"0": 0}
    said = world.violations()
    assert "a-0 appended [2], and that is missing" in said
    assert "a-0 stored 1 in word 0, and there is 0" in said


def test_what_may_have_happened_is_allowed_for(world: World) -> None:
    world.did(0, "create", None, name="00000005")
    world.did(1, "create", errno.EEXIST, name="00000005")
    world.did(0, "count", None, kind="posix")
    world.word("count-posix", 4)
    world.did(0, "step", None, to=2)
    (world.export / "renames" / "step-a-0-1").rename(world.export / "renames" / "step-a-0-2")
    (world.export / "names" / "00000005").touch()
    assert world.violations() == []


def test_a_journal_says_how_far_its_worker_came(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a-0.journal")
    with journal.operation("lock", kind="flock"):
        pass
    with journal.operation("count", kind="flock") as learned:
        learned["found"] = 7
    with journal.operation("create", errno.EEXIST, name="x") as told:
        raise FileExistsError(errno.EEXIST, "there")
    assert told["error"] == errno.EEXIST
    with pytest.raises(OSError, match="broken"), journal.operation("append", number=1):
        raise OSError(errno.EIO, "broken")
    (history,) = read_all(tmp_path)
    assert not history.complete
    assert [(it.what, it.error) for it in history.operations] == [
        ("lock", 0), ("count", 0), ("create", errno.EEXIST), ("append", errno.EIO),
    ]  # fmt: skip
    assert history.operations[1]["found"] == 7
    assert all(it.ended is not None and it.ended >= it.began for it in history.operations)
    journal.end()
    with (tmp_path / "a-0.journal").open("a") as file:
        file.write(json.dumps({"begin": 9})[:-3])  # killed inside a line
    assert read(tmp_path / "a-0.journal").complete


def test_pauses_are_those_of_the_workers_asked_for(world: World) -> None:
    world.did(1, "append", took=2_000_000_000, number=3)
    assert longest_pauses(world.histories, ["b-1"])["append"] == 2.0
    assert longest_pauses(world.histories, ["a-0"])["append"] < 1.0
