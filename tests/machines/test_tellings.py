"""Which answer tells the newest attributes: scenarios, and a server that answers in any order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from nfsfuse.machines.tellings import Age, Tellings
from nfsfuse.protocol.types import Attributes, InodeHandle, RequestId
from nfsfuse.rpc.exchange import Answering

FILE, OTHER = InodeHandle(b"file"), InodeHandle(b"other")
LINKED = Attributes(9, 0o100644, 2, 0, 0, 0, 0, 0, 1, 1, 5, 0)
UNLINKED = replace(LINKED, nlink=1, ctime_ns=6)


def answering(request: int, oldest: int, newest: int) -> Answering:
    return Answering(RequestId(request), RequestId(oldest), RequestId(newest))


def test_an_answer_that_was_overtaken_is_older_although_nothing_was_believed() -> None:
    """Found by the stress of names: a listing that was on its way while a name of a file in it was removed told
    two links of a file that had one, and the client had no token for it before that listing."""
    tellings = Tellings()
    assert tellings.tells(FILE, UNLINKED, answering(2, 1, 2)) is Age.NEWEST
    assert tellings.tells(FILE, LINKED, answering(1, 1, 2)) is Age.OLDER


def test_what_was_asked_since_is_newer_whatever_the_clock_says() -> None:
    tellings = Tellings()
    tellings.tells(FILE, UNLINKED, answering(2, 1, 2))
    set_back = replace(UNLINKED, nlink=3, ctime_ns=1)
    assert tellings.tells(FILE, set_back, answering(3, 1, 3)) is Age.NEWEST


def test_an_answer_that_tells_twice_tells_the_same() -> None:
    """Found in the simulator of names: the answer to a link tells of the inode, and of all that were affected,
    it among them. After the first time nothing was under way any more, and nothing remembered."""
    tellings = Tellings()
    tellings.tells(FILE, UNLINKED, answering(1, 1, 2))
    for _ in range(2):
        assert tellings.tells(FILE, LINKED, answering(2, 2, 2)) is Age.OLDER


def test_of_one_instant_nobody_knows_which_was_first() -> None:
    tellings = Tellings()
    same = replace(UNLINKED, ctime_ns=LINKED.ctime_ns)
    assert tellings.tells(FILE, LINKED, answering(3, 1, 3)) is Age.NEWEST
    assert tellings.tells(FILE, replace(LINKED, atime_ns=99), answering(3, 1, 3)) is Age.NEWEST
    assert tellings.tells(FILE, same, answering(2, 1, 3)) is Age.UNCLEAR
    assert tellings.tells(FILE, same, answering(1, 1, 3)) is Age.UNCLEAR, "the other may be newer all the same"
    assert tellings.tells(FILE, same, answering(4, 1, 4)) is Age.NEWEST


def test_nothing_is_remembered_once_no_older_request_is_unanswered() -> None:
    tellings = Tellings()
    tellings.tells(FILE, LINKED, answering(2, 1, 3))
    tellings.tells(OTHER, LINKED, answering(3, 1, 4))
    assert len(tellings) == 2
    tellings.tells(OTHER, LINKED, answering(5, 4, 5))
    assert len(tellings) == 1
    tellings.tells(OTHER, LINKED, answering(6, 6, 6))
    assert len(tellings) == 0


def test_what_had_to_be_forgotten_is_taken_for_a_change() -> None:
    tellings = Tellings(tellings_max=1)
    tellings.tells(FILE, UNLINKED, answering(3, 1, 4))
    tellings.tells(OTHER, UNLINKED, answering(4, 1, 4))
    assert tellings.tells(FILE, LINKED, answering(2, 1, 4)) is Age.UNCLEAR
    assert tellings.tells(FILE, LINKED, answering(5, 1, 5)) is Age.NEWEST
    tellings.check()


REQUESTS_MAX = 4
"""Asked and not done."""

STEPS = 60


@dataclass
class _Server:
    """One inode, of which a client asks for attributes, and for changes. A request is done at some time after
    it was asked, and answered at some time after that."""

    links: int = 1
    ctime: int = 0
    now: int = 0
    asked: int = 0
    to_do: dict[int, bool] = field(default_factory=dict)  # whether it is a change
    to_answer: dict[int, Attributes] = field(default_factory=dict)

    def ask(self, change: bool) -> None:
        self.asked += 1
        self.to_do[self.asked] = change

    def do(self, request: int) -> None:
        if self.to_do.pop(request):
            self.links += 1
            self.ctime = self.now
        self.to_answer[request] = replace(LINKED, nlink=self.links, ctime_ns=self.ctime)

    def answering(self, request: int) -> Answering:
        return answering(request, min([*self.to_do, *self.to_answer]), self.asked)


@pytest.mark.parametrize("tellings_max", [1, 4])
def test_what_is_believed_is_what_the_newest_change_that_was_told_has_left(tellings_max: int) -> None:
    for seed in range(1000):
        play(Random(seed), tellings_max)


def play(random: Random, tellings_max: int) -> None:
    tellings, server = Tellings(tellings_max), _Server()
    believed: Attributes | None = None
    told_links = 0
    for _ in range(STEPS):
        possible = [
            *(["ask", "change"] if len(server.to_do) < REQUESTS_MAX else []),
            "tick",
            *server.to_do,
            *[told for told in server.to_answer.items() for _ in range(2)],
        ]
        match random.choice(possible):
            case "ask" | "change" as what:
                server.ask(what == "change")
            case "tick":
                server.now += 1  # else two changes have the same ctime
            case int(request):
                server.do(request)
            case (int(request), told):
                age = tellings.tells(FILE, told, server.answering(request))
                if random.random() < 0.3:  # one answer may tell of an inode twice
                    assert tellings.tells(FILE, told, server.answering(request)) is age
                if random.random() < 0.3:  # of another inode, for which this one may be forgotten
                    tellings.tells(OTHER, told, server.answering(request))
                del server.to_answer[request]
                told_links = max(told_links, told.nlink)
                if age is Age.NEWEST:
                    believed = told
                elif age is Age.UNCLEAR:
                    believed = None
                assert believed is None or believed.nlink == told_links
        tellings.check()
