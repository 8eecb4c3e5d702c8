"""Whether what programs were told is true: their journals against each other, and against the export.

Everything here is a function of the journals and of the export after all is over; each check returns what it
found wrong, in words. A worker is *dead* if its client was killed: then an error is to be expected at its end,
and what it had neither synchronised nor closed may be lost. For all others nothing may be.

A check of real time: what was done before another operation began must be seen by that.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from scripts.proof.load.journal import History, Operation
from scripts.proof.load.worker import LOCKS, RECORD_SIZE, SLOT

Histories = list[History]
Interval = tuple[int, int, Operation]

ANSWERS: Final = {"create": errno.EEXIST, "take": errno.ENOENT}
"""Errors that say something of the others, and nothing went wrong."""


def violations(histories: Histories, export: Path, dead: Collection[str] = ()) -> list[str]:
    """Everything that is wrong."""
    found = list(errors(histories, dead))
    for check in CHECKS:
        found += check(histories, export, dead)
    return found


def errors(histories: Histories, dead: Collection[str]) -> Iterator[str]:
    """No program may see an error, and all must come to their end; but for those whose client was killed."""
    for history in histories:
        if history.worker in dead:
            continue
        for operation in history.operations:
            if operation.error and uncertain(operation):
                yield f"{operation} was told {os.strerror(operation.error)}"
        if not history.complete:
            yield f"{history.worker} did not come to its end"


def uncertain(operation: Operation) -> bool:
    """Whether it may have happened, or not: nobody was told, or an error that is no answer."""
    return operation.error is None or operation.error not in (0, ANSWERS.get(operation.what))


def of_kind(histories: Histories, *what: str) -> list[Operation]:
    """The operations of these kinds, in the order they began."""
    found = [operation for history in histories for operation in history.operations if operation.what in what]
    return sorted(found, key=lambda operation: operation.began)


def ended(operation: Operation) -> int:
    """When it was over."""
    assert operation.ended is not None
    return operation.ended


def creates(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """Each name is created once, and is there; nobody is told that it exists before anybody made it."""
    by_name: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in of_kind(histories, "create"):
        by_name[operation["name"]].append(operation)
    published = {operation["name"] for operation in of_kind(histories, "publish") if operation.done}
    there = set(os.listdir(export / "names"))
    for name, operations in by_name.items():
        makers = [operation for operation in operations if operation.done]
        possible = makers + [operation for operation in operations if uncertain(operation)]
        if len(makers) > 1:
            yield f"created {len(makers)} times: {name}, by {', '.join(maker.worker for maker in makers)}"
        for operation in operations:
            told_no = not operation.done and not uncertain(operation)
            if told_no and not any(other.began < ended(operation) for other in possible):
                yield f"{operation}: it exists, and nobody has made it (done twice?)"
        if makers and name not in there:
            yield f"created, and missing: {name}"
        elif makers and name in published:
            content = (export / "names" / name).read_text()
            if content != makers[0].worker:
                yield f"created by {makers[0].worker}, and has {content!r}: {name}"
    for name in there - by_name.keys():
        yield f"there, and nobody has created it: {name}"


def renames(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """A file that is renamed step by step is where it was brought to, once."""
    there: defaultdict[str, list[int]] = defaultdict(list)
    for name in os.listdir(export / "renames"):
        if name.startswith("step-"):
            worker, _, step = name.removeprefix("step-").rpartition("-")
            there[worker].append(int(step))
    for history in histories:
        steps = [operation for operation in history.operations if operation.what == "step"]
        if not steps:
            continue
        done = max((operation["to"] for operation in steps if operation.done), default=-1)
        possible = {done} | {operation["to"] for operation in steps if not operation.done}
        found = sorted(there[history.worker]) or [-1]
        if len(found) > 1 or found[0] not in possible:
            yield f"{history.worker} renamed to step {done}, and there is {found}"


def ball(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """A file that all take by renaming is one's own until it is given back."""
    intervals: list[Interval] = []
    for history in histories:
        taken: Operation | None = None
        for operation in history.operations:
            if operation.what == "take" and operation.done:
                taken = operation
            elif operation.what == "give" and taken is not None:
                intervals.append((ended(taken), operation.began, taken))
                taken = None
    yield from _overlaps(intervals, "the ball was taken by two")
    found = [name for name in os.listdir(export / "renames") if name.startswith("ball")]
    if len(found) != 1:
        yield f"there is one ball, and now: {sorted(found)}"


def _overlaps(intervals: list[Interval], what: str) -> Iterator[str]:
    for (_, end, one), (begin, _, other) in itertools.pairwise(sorted(intervals, key=lambda it: it[0])):
        if begin < end:
            yield f"{what} for {(end - begin) / 1e6:.3f} ms: {one} and {other}"


def appends(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """All records that were settled are there, whole, once, and each worker's in its order."""
    data = (export / "log").read_bytes()
    if len(data) % RECORD_SIZE:
        yield f"the log ends in a part of a record: {len(data)} bytes"
    found: defaultdict[str, list[int]] = defaultdict(list)
    for at in range(0, len(data), RECORD_SIZE):
        words = data[at : at + RECORD_SIZE].split()
        if len(words) == 2 and words[1].isdigit() and data[at + RECORD_SIZE - 1 : at + RECORD_SIZE] == b"\n":
            found[words[0].decode()].append(int(words[1]))
        else:
            yield f"not a record, at {at}: {data[at : at + RECORD_SIZE]!r}"
    for history in histories:
        begun = [operation for operation in history.operations if operation.what == "append"]
        there = found.pop(history.worker, [])
        for number, count in Counter(there).items():
            if count > 1:
                yield f"{history.worker} appended record {number} once, and it is there {count} times"
        if there != sorted(there):
            yield f"the records of {history.worker} are not in order"
        if unknown := set(there) - {operation["number"] for operation in begun}:
            yield f"{history.worker} never wrote {sorted(unknown)}"
        settled = set(_settled(history, "append", "sync", history.worker in dead, "number"))
        if missing := settled - set(there):
            yield f"{history.worker} appended {sorted(missing)}, and that is missing"
    for worker in found:
        yield f"records of {worker}, who is unknown"


def _settled(history: History, what: str, sync: str, is_dead: bool, fact: str) -> Iterator[int]:
    """*fact* of all operations *what* that must not be lost: those before a *sync*, or for the living all."""
    waiting: list[int] = []
    for operation in history.operations:
        if operation.what == what and operation.done:
            waiting.append(operation[fact])
        elif operation.what == sync and operation.done:
            yield from waiting
            waiting.clear()
    if not is_dead:
        yield from waiting


def records(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """Each record is the last that was synchronised, or one that may have been written after it."""
    for history in histories:
        last: dict[int, int] = {}
        possible: defaultdict[int, set[int]] = defaultdict(set)
        for operation in history.operations:
            if operation.what != "put":
                continue
            if operation.done:
                last[operation["slot"]] = operation["value"]
                possible[operation["slot"]].clear()
            else:
                possible[operation["slot"]].add(operation["value"])
        if not last:
            continue
        data = (export / f"records-{history.worker}").read_bytes()
        for slot, value in last.items():
            raw = data[slot * SLOT.size : (slot + 1) * SLOT.size]
            found = SLOT.unpack(raw)[0] if len(raw) == SLOT.size else None
            if found != value and found not in possible[slot]:
                yield f"{history.worker} synchronised {value} in record {slot}, and there is {found}"


def locks(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """No lock is held by two, and every increment under it counts, once."""
    for kind in LOCKS:
        intervals: list[Interval] = []
        for history in histories:
            held: Operation | None = None
            for operation in history.operations:
                if operation.facts.get("kind") != kind:
                    continue
                if operation.what == "lock" and operation.done:
                    held = operation
                elif operation.what == "unlock" and held is not None:
                    intervals.append((ended(held), operation.began, held))
                    held = None
        yield from _overlaps(intervals, f"the lock {kind} was held by two")
        counts = [operation for operation in of_kind(histories, "count") if operation["kind"] == kind]
        done = sorted((it for it in counts if it.done), key=ended)
        for one, other in itertools.pairwise(done):
            if other["found"] <= one["found"]:
                yield f"{one} found {one['found']}, and then {other} found {other['found']}: an update is lost"
        unresolved = len(counts) - len(done)
        (final,) = SLOT.unpack((export / f"count-{kind}").read_bytes())
        if not len(done) <= final <= len(done) + unresolved:
            yield f"{len(done)} increments under {kind}, {unresolved} perhaps, and the count is {final}"


def maps(histories: Histories, export: Path, dead: Collection[str]) -> Iterator[str]:
    """Words of a mapped page never go back, whoever looks; what was stored before is seen; what was
    synchronised, and of the living all, is there at the end."""
    page = (export / "page").read_bytes()
    known: list[tuple[int, str, int, str]] = []  # at this time, a word had this value at least, and why
    for history in histories:
        last = max(_settled(history, "store", "msync", history.worker in dead, "value"), default=0)
        for operation in history.operations:
            if operation.what == "store" and operation.done and operation["value"] <= last:
                slot, value = operation["slot"], operation["value"]
                known.append((ended(operation), str(slot), value, f"it was stored by {history.worker}"))
        slots = {operation["slot"] for operation in history.operations if operation.what == "store"}
        for slot in slots:
            (found,) = SLOT.unpack_from(page, slot * SLOT.size)
            if found < last:
                yield f"{history.worker} stored {last} in word {slot}, and there is {found}"
    looks = [operation for operation in of_kind(histories, "look") if operation.done]
    of_the_dead = {
        str(operation["slot"]) for operation in of_kind(histories, "store") if operation.worker in dead
    }
    for look in looks:
        for slot, value in look["page"].items():
            if look.worker in dead and slot in of_the_dead:
                continue  # on one client with it, perhaps: nobody else need have seen it
            known.append((ended(look), slot, value, f"{look.worker}:{look.number} saw it"))
    known.sort(key=lambda it: it[0])
    least: dict[str, tuple[int, str]] = {}
    at = 0
    for look in looks:
        while at < len(known) and known[at][0] < look.began:
            _, slot, value, why = known[at]
            at += 1
            if value > least.get(slot, (0, ""))[0]:
                least[slot] = value, why
        for slot, (value, why) in least.items():
            seen = look["page"].get(slot, 0)
            if seen < value:
                yield f"{look.worker}:{look.number} saw {seen} in word {slot}, and before {value}: {why}"


Check = Callable[[Histories, Path, Collection[str]], Iterator[str]]
CHECKS: Final[tuple[Check, ...]] = (creates, renames, ball, appends, records, locks, maps)


def longest_pauses(histories: Histories, workers: Collection[str]) -> dict[str, float]:
    """The longest that *workers* waited for each kind of operation, in seconds."""
    longest: dict[str, float] = {}
    for history in histories:
        if history.worker in workers:
            for operation in history.operations:
                if operation.ended is not None:
                    took = (operation.ended - operation.began) / 1e9
                    longest[operation.what] = max(longest.get(operation.what, 0.0), took)
    return longest
