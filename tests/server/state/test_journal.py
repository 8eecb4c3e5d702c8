"""What the journal keeps, for how long, and that what was begun can always be written down as done."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codes import CODES
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import Attributes, Credentials, InodeHandle, Node, RequestId, SessionId
from nfsfuse_server.state.interface import StateError
from nfsfuse_server.state.journal import INTENT_SIZE_MAX, OUTCOME_SIZE_MAX, Journal
from nfsfuse_server.state.records import (
    JOURNAL_VERSION,
    Intent,
    Named,
    pack_done,
    pack_intent,
    pack_version,
    unpack,
)
from nfsfuse_server.state.records import version_of as unpack_version
from tests.helpers.memory_state import MemoryLog

JOURNAL_1 = Path(__file__).with_name("journal_1.txt")
ONE, TWO = SessionId(b"one"), SessionId(b"two")
ROOT = InodeHandle(b"root")
DONE = m.Done()


def intent(number: int, *names: bytes, session: SessionId = ONE) -> Intent:
    before = tuple(Named(ROOT, name, None) for name in names)
    return Intent(session, RequestId(number), m.Unlink(ROOT, b"a name"), b"", before, 0)


def nothing_acknowledged(session: SessionId) -> int:
    return 0


def begun(log: MemoryLog) -> Journal:
    journal = Journal(log)
    assert journal.load() == []
    journal.begin([ONE, TWO])
    return journal


def restarted(log: MemoryLog, *known: SessionId) -> tuple[Journal, list[Intent]]:
    journal = Journal(log)
    open_intents = journal.load()
    for one in open_intents:
        journal.settled(one, DONE)
    journal.begin(known or (ONE, TWO))
    journal.check()
    return journal, open_intents


def test_the_next_process_finds_what_was_begun_and_what_was_done() -> None:
    log = MemoryLog()
    journal = begun(log)
    for number in (1, 2, 3):
        journal.intend(intent(number, b"%d" % number), nothing_acknowledged)
    journal.done(ONE, RequestId(2), FsError(errno.EEXIST, "a detail"), 7)
    journal.check()
    after, open_intents = restarted(log)
    assert [(one.session, one.request) for one in open_intents] == [(ONE, 1), (ONE, 3)]
    outcome = after.outcome(ONE, RequestId(2))
    assert isinstance(outcome, FsError)
    assert outcome.errno == errno.EEXIST
    assert after.outcome(ONE, RequestId(1)) == DONE
    assert after.outcome(ONE, RequestId(4)) is None
    assert after.outcome(TWO, RequestId(2)) is None


def test_a_journal_without_a_version_is_the_first_releases() -> None:
    """Every kind of intent and answer, as that has written them (`journal_1.txt`)."""
    lines = dict(line.split() for line in JOURNAL_1.read_text().splitlines() if not line.startswith("#"))
    log = MemoryLog()
    log.records = [bytes.fromhex(record) for record in lines.values()]
    journal = Journal(log)
    found = journal.load()
    assert {type(one.message).__name__ for one in found} == {name for name in lines if "-" not in name}
    for one in found:
        assert (one.session, one.payload, one.was) == (ONE, b"payload", 7)
        assert one.names == (Named(ROOT, b"name", InodeHandle(b"inode")), Named(ROOT, b"new", None))
        journal.settled(one, DONE)
    answers = {type(journal.outcome(ONE, RequestId(number))).__name__ for number in range(100, 200)}
    assert answers - {"NoneType"} == {name.removeprefix("answer-") for name in lines if "-" in name}
    journal.begin([ONE])
    assert unpack_version(log.records) == JOURNAL_VERSION, "from now on"
    assert Journal(log).load() == []


def test_a_journal_that_is_not_understood_is_refused_and_left_as_it_is() -> None:
    request = m.Unlink(ROOT, b"name")
    intended = pack_intent(Intent(ONE, RequestId(1), request, b"", (), 0))
    unknown = intended.replace(bytes([CODES[m.Unlink]]) + b"\xc4", b"\x7f\xc4")
    assert unknown != intended
    for records in (
        [pack_version(JOURNAL_VERSION + 1)],
        [pack_version(), unknown],
        [unknown],
        [pack_version(), b"no msgpack \xc1"],
        [b"\x93\x07\x07\x07"],
    ):
        log = MemoryLog()
        log.records = list(records)
        with pytest.raises(StateError, match=r"cannot be understood .* start the nfsfuse-server that"):
            Journal(log).load()
        assert log.records == records


def test_what_is_settled_is_written_all_at_once() -> None:
    log = MemoryLog()
    begun(log).intend(intent(1, b"x"), nothing_acknowledged)
    before = list(log.records)
    journal = Journal(log)
    (found,) = journal.load()
    journal.settled(found, DONE)
    assert log.records == before, "one who dies here settles it again"
    journal.begin([ONE])
    assert restarted(log)[1] == []


def test_outcomes_of_sessions_that_are_not_known_are_dropped() -> None:
    log = MemoryLog()
    journal = begun(log)
    for session in (ONE, TWO):
        journal.intend(intent(1, session, session=session), nothing_acknowledged)
        journal.done(session, RequestId(1), DONE, 1)
    after, _ = restarted(log, TWO)
    assert after.outcome(ONE, RequestId(1)) is None
    assert after.outcome(TWO, RequestId(1)) == DONE


def test_names_are_busy_from_the_intent_to_its_end() -> None:
    journal = begun(MemoryLog())
    journal.intend(intent(1, b"old", b"new"), nothing_acknowledged)
    assert journal.busy(intent(2, b"new", b"other").names)
    assert not journal.busy(intent(2, b"other").names)
    journal.done(ONE, RequestId(1), DONE, 1)
    assert not journal.busy(intent(2, b"new", b"old").names)
    journal.check()


def test_a_full_log_is_written_anew_with_what_is_not_acknowledged() -> None:
    log = MemoryLog(2 * INTENT_SIZE_MAX)
    journal = begun(log)
    journal.intend(intent(1, b"still running"), nothing_acknowledged)
    acknowledged = 0
    for number in range(2, 2000):
        journal.intend(intent(number, b"name"), lambda session, count=acknowledged: count)
        journal.check()
        journal.done(ONE, RequestId(number), DONE, number)
        journal.check()
        acknowledged = number - 3
    after, open_intents = restarted(log)
    assert [one.request for one in open_intents] == [1]
    for number in (1997, 1998, 1999):
        assert after.outcome(ONE, RequestId(number)) == DONE
    assert after.outcome(ONE, RequestId(500)) is None, "the log was written anew at some time"


def test_a_session_that_has_reclaimed_needs_only_what_it_asked_for_again() -> None:
    log = MemoryLog()
    journal = begun(log)
    for number in (1, 2, 3):
        journal.intend(intent(number), nothing_acknowledged)
        journal.done(ONE, RequestId(number), DONE, number)
    after, _ = restarted(log)
    after.answering(ONE, RequestId(2))
    after.answering(ONE, RequestId(3))
    after.answered(ONE, RequestId(2), 5)
    after.reclaimed(ONE)
    assert [after.outcome(ONE, RequestId(number)) for number in (1, 2, 3)] == [None, DONE, DONE]
    after.answered(ONE, RequestId(3), 6)  # what it opened had to be pinned first, and the disk was busy


def test_a_session_that_is_over_leaves_only_what_still_runs() -> None:
    log = MemoryLog()
    journal = begun(log)
    journal.intend(intent(1), nothing_acknowledged)
    journal.done(ONE, RequestId(1), DONE, 1)
    journal.intend(intent(2, b"name"), nothing_acknowledged)
    journal.forget(ONE)
    journal.check()
    assert journal.outcome(ONE, RequestId(1)) is None
    assert journal.busy(intent(3, b"name").names), "the storage is still at work"
    journal.done(ONE, RequestId(2), FsError(errno.ENOTCONN), None)
    journal.check()
    assert journal.outcome(ONE, RequestId(2)) is None, "there is nobody to ask"
    assert restarted(log)[1] == []


def test_an_intent_for_which_there_is_no_room_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog(INTENT_SIZE_MAX)
    journal = begun(log)

    def full(records: object, reserve: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(log, "replace", full)
        with pytest.raises(OSError, match="no space"):
            journal.intend(intent(1, b"name"), nothing_acknowledged)
    assert log.records == [pack_version()]
    assert not journal.busy(intent(1, b"name").names)
    journal.check()


def test_the_largest_records_have_room() -> None:
    handle = InodeHandle(b"h" * 192)
    attributes = Attributes(*[(1 << 63) - 1] * 12)
    nodes = (Node(handle, attributes),) * 5
    assert len(pack_done(SessionId(b"s" * 16), RequestId(1 << 62), m.Done(nodes))) <= OUTCOME_SIZE_MAX
    long = b"n" * 255
    before = (Named(handle, long, handle),) * 2
    for message, payload in (
        (m.SetXattr(handle, long, 0), bytes(65536)),
        (m.SymLink(handle, long, b"t" * 4096, Credentials(1 << 32, 1 << 32)), b""),
        (m.Rename(handle, long, handle, long, 0), b""),
    ):
        record = pack_intent(Intent(SessionId(b"s" * 16), RequestId(1 << 62), message, payload, before, 1))
        assert len(record) <= INTENT_SIZE_MAX
        unpacked = unpack(record)
        assert isinstance(unpacked, Intent)
        assert (unpacked.message, unpacked.payload, unpacked.names) == (message, payload, before)


def test_at_random_the_log_says_what_happened() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        log = MemoryLog(INTENT_SIZE_MAX + rng.randrange(20_000))
        journal = begun(log)
        running: list[int] = []
        frames: dict[int, int] = {}
        received = 0
        for number in range(1, 400):
            journal.intend(intent(number, b"%d" % number), lambda session, count=received: count)
            running.append(number)
            while running and rng.random() < 0.6:
                ended = running.pop(rng.randrange(len(running)))
                frames[ended] = len(frames) + 1
                journal.done(ONE, RequestId(ended), DONE, frames[ended])
            received = max(received, len(frames) - rng.randrange(50))
            journal.check()
        after, open_intents = restarted(log)
        assert [one.request for one in open_intents] == sorted(running), seed
        for number, frame in frames.items():
            if frame > received:
                assert after.outcome(ONE, RequestId(number)) == DONE, seed
