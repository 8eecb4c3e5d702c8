"""What nfsfuse is to reach, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from scripts.benchmark.results import OURS, Results

LOCAL_TOLERANCE: Final = 1.5
"""How many times slower than the local directory still is "local speed": what neither asks a server anything
differs by the length of the kernel's path only, and by the noise of a short measurement."""


class Against(Enum):
    """What a figure is compared with."""

    BEST_PEER = "the best peer"
    LOCAL = "local"
    OWN = "a figure of its own"
    NUMBER = "a number"


@dataclass(frozen=True, slots=True)
class Goal:
    """*figure* of ours is to be at least *times* as good as what it is compared with: of durations, to take
    at most 1/*times* of it. For OWN, *other* is another figure of ours; for NUMBER, *number* is it."""

    figure: str
    against: Against
    times: float = 1.0
    other: str = ""
    number: float = 0.0
    words: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a goal is met, None if there is nothing to compare with; *needed* is the value it takes."""

    goal: Goal
    needed: float | None
    met: bool | None


def _peer(figure: str, times: float, words: str) -> Goal:
    return Goal(figure, Against.BEST_PEER, times, words=words)


def _local(figure: str, words: str = "local speed") -> Goal:
    return Goal(figure, Against.LOCAL, 1 / LOCAL_TOLERANCE, words=words)


GOALS: Final = (
    _peer("seq-write", 2, ">= 2 x the best peer"),
    _peer("seq-read-cold", 3, ">= 3 x the best peer"),
    _local("seq-read-warm", "page cache speed"),
    _peer("mmap-scan", 3, ">= 3 x the best peer"),
    _peer("mmap-store", 1.5, ">= 1.5 x the best peer"),
    _peer("random-read", 1, "<= 1.0 x the best peer"),
    _peer("write-fsync", 1, "<= 1.0 x the best peer"),
    _peer("append", 1 / 1.2, "<= 1.2 x the best peer"),
    _peer("create", 2, ">= 2 x the best peer"),
    _peer("walk-cold", 2, ">= 2 x the best peer"),
    _local("walk-warm"),
    _peer("read-files-cold", 2, ">= 2 x the best peer"),
    _peer("read-files-warm", 5, ">= 5 x the best peer"),
    _local("stat"),
    _peer("remove", 1.2, ">= 1.2 x the best peer"),
    Goal("ping-pong", Against.NUMBER, number=1000.0, words="< 1 ms"),
    Goal("ping-pong", Against.OWN, 1 / 10, other="loopback", words="<= 10 loopback round trips"),
    Goal("clients-8", Against.OWN, other="clients-4", words="not below 4 clients"),
    Goal("clients-8-files", Against.OWN, other="clients-4-files", words="not below 4 clients"),
)


@dataclass(frozen=True, slots=True)
class Halved:
    """What *figure* may take of what commit HALVED_SINCE takes, in pairs of the same round: of processor time,
    clients and server together, and of elapsed time."""

    figure: str
    processor: float
    elapsed: float


HALVED_SINCE: Final = "4580535"

HALVED: Final = (
    Halved("create", 0.60, 0.65),
    Halved("walk-cold", 0.30, 0.35),
    Halved("read-files-cold", 0.40, 0.45),
    Halved("read-files-warm", 0.40, 0.60),
    Halved("remove", 0.60, 0.65),
    Halved("rename", 0.60, 0.65),
    Halved("random-read", 0.50, 0.60),
    Halved("write-fsync", 0.60, 0.70),
    Halved("append", 0.40, 0.50),
    Halved("seq-write", 0.60, 0.70),
    Halved("seq-read-cold", 0.60, 0.70),
    Halved("mmap-store", 0.60, 0.75),
    Halved("git-status-cold", 0.40, 0.45),
    Halved("locks", 0.60, 0.60),
    Halved("ping-pong", 0.70, 0.70),
    Halved("clients-8-files", 0.60, 0.65),
    Halved("clients-8", 0.65, 0.75),
)
"""Of the next round of work on speed; judged where that commit is measured beside."""


def judge(goal: Goal, results: Results) -> Verdict:
    """Whether *goal* is met by what was measured."""
    figure = results.figures[goal.figure]
    ours = results.median(goal.figure, OURS)
    theirs = _compared(goal, results)
    if theirs is None or ours is None:
        return Verdict(goal, None, None)
    ratio = figure.ratio(ours, theirs)
    needed = theirs * goal.times ** (1 if figure.ratio(2.0, 1.0) > 1 else -1)
    return Verdict(goal, needed, ratio >= goal.times)


def _compared(goal: Goal, results: Results) -> float | None:
    match goal.against:
        case Against.BEST_PEER:
            return results.best_peer(goal.figure)
        case Against.LOCAL:
            return results.median(goal.figure, "local")
        case Against.OWN:
            return results.median(goal.other, OURS)
        case Against.NUMBER:
            return goal.number


def verdicts(results: Results, figure: str) -> list[Verdict]:
    """Of all goals for *figure*."""
    return [judge(goal, results) for goal in GOALS if goal.figure == figure]
