"""The queue of inotify events: whose doing they are."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.watch.queue import Batch, EventQueue, Name

IN_CREATE = 0x100

ONE, OTHER, FOUND = (InodeHandle(name) for name in (b"one", b"other", b"found"))


@pytest.fixture
def queue(tmp_path: Path):
    made = EventQueue()
    made.add(bytes(tmp_path), IN_CREATE)
    yield made
    made.close()


def nowhere(name: Name) -> None:
    """What no name leads to."""


def taken(queue: EventQueue) -> list[Batch]:
    with queue.taking() as batches:
        return batches


def is_waking(queue: EventQueue) -> bool:
    ready, _, _ = select.select([queue._either.fileno()], [], [], 0)
    return bool(ready)


def test_what_an_operation_finds_in_the_end_is_its_own_although_another_read_the_event(
    queue: EventQueue, tmp_path: Path
) -> None:
    with queue.touching(ONE, leads_to=nowhere) as touched:
        (tmp_path / "file").touch()
        with queue.touching(OTHER, leads_to=nowhere):
            pass  # in another thread: it reads the queue at its beginning and its end
        assert taken(queue) == [], "whose doing it is cannot be told yet"
        assert not is_waking(queue)
        touched.append(FOUND)
    assert is_waking(queue)
    (batch,) = taken(queue)
    assert [event.name for event in batch.events()] == [b"file"]
    assert {ONE, FOUND} <= batch.own()
    assert not is_waking(queue)


def test_events_that_nobody_may_have_made_are_told_at_once(queue: EventQueue, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert is_waking(queue)
    with queue.touching(ONE, leads_to=nowhere):
        (batch,) = taken(queue)
        assert batch.own() == frozenset()


def test_events_are_told_in_order(queue: EventQueue, tmp_path: Path) -> None:
    with queue.touching(ONE, leads_to=nowhere):
        (tmp_path / "first").touch()
        with queue.touching(OTHER, leads_to=nowhere):
            pass
        assert taken(queue) == []
    (tmp_path / "second").touch()
    names = [event.name for batch in taken(queue) for event in batch.events()]
    assert names == [b"first", b"second"]


def test_where_a_name_led_is_noted_before_it_leads_elsewhere(queue: EventQueue, tmp_path: Path) -> None:
    name, other = (ONE, b"file"), (ONE, b"fil")
    (tmp_path / "file").touch()
    with queue.taking() as (batch,):  # they are being told
        with queue.touching(name, other, leads_to=lambda _: FOUND):
            assert batch.led == {name: FOUND}, "no event may be about the other"
        with queue.touching(name, leads_to=lambda _: OTHER):
            assert batch.led == {name: FOUND}, "what is true of the event is where it led first"
    with queue.touching(name, leads_to=nowhere):
        assert batch.led == {name: FOUND}
    assert taken(queue) == []
