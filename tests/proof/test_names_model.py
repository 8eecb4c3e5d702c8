"""The judge of `scripts.proof.names_stress` finds an order where there is one, else fails."""

from __future__ import annotations

import errno
import random
from dataclasses import replace

import pytest

from scripts.proof.names_model import DIRECTORY, EMPTY, PATHS, Call, Done, Unexplained, check

AX, AY, AZ, BX = 0, 1, 2, 3


def done(begin: int, end: int, call: Call, *paths: int, error: int = 0, inode: int = 0, links: int = 0) -> Done:
    return Done(begin, end, "mount", call, paths, error, inode, links)


CREATED = done(0, 10, Call.CREATE, AX, inode=7)


def test_a_history_is_explained_and_says_what_is_left() -> None:
    history = [
        CREATED,
        done(20, 30, Call.LINK, AX, BX),
        done(40, 50, Call.STAT, BX, inode=7, links=2),
        done(60, 70, Call.UNLINK, AX),
        done(80, 90, Call.LINKS, inode=7, links=1),
        done(100, 110, Call.MKDIR, AX),
        done(120, 130, Call.STAT, AX, inode=DIRECTORY),
    ]
    (left,) = check(history)
    assert left == (DIRECTORY, None, None, 7, None, None)


def test_of_two_at_once_either_may_have_been_first() -> None:
    history = [
        CREATED,
        done(20, 30, Call.RENAME, AX, AY),
        done(20, 30, Call.RENAME, AX, AZ, error=errno.ENOENT),
        done(25, 35, Call.STAT, AX, error=errno.ENOENT),
    ]
    assert check(history) == {(None, 7, None, None, None, None)}
    late = [*history[:2], replace(history[2], begin=0, end=5), history[3]]
    assert len(check(late)) == 1, "it may have come before there was the name"


def test_what_is_under_way_may_have_taken_effect_or_not() -> None:
    moving = [CREATED, done(20, 90, Call.RENAME, AX, AY), done(20, 90, Call.RENAME, AX, AY, error=errno.ENOENT)]
    check([*moving, done(30, 35, Call.STAT, AY, error=errno.ENOENT)])
    check([*moving, done(30, 35, Call.STAT, AY, inode=7, links=1)])


def test_a_rename_between_two_names_of_one_inode_may_do_nothing() -> None:
    """Found by these tests: a rename that could have been one such was taken for one."""
    history = [CREATED, done(20, 30, Call.LINK, AX, AY), done(40, 50, Call.RENAME, AX, AY)]
    assert check(history) == {(7, 7, None, None, None, None)}
    crossing = [CREATED, done(20, 90, Call.RENAME, AX, AY), done(20, 60, Call.RENAME, AX, AY)]
    again = [*crossing, done(30, 50, Call.RENAME, AY, AX), done(100, 110, Call.STAT, AX, error=errno.ENOENT)]
    assert check(again) == {(None, 7, None, None, None, None)}


@pytest.mark.parametrize("call", [Call.RENAME, Call.EXCHANGE])
def test_what_moves_between_two_looks_is_not_at_both_names(call: Call) -> None:
    """A rename of what is at neither name at the same time does something, or fails."""
    moved = [CREATED, done(0, 10, Call.CREATE, AY, inode=8), done(20, 30, Call.EXCHANGE, AX, AY)]
    left = (8, 7, None, None, None, None)
    assert check(moved) == {left}
    assert left not in check([*moved, done(15, 40, call, AX, AY)])


def test_one_of_two_that_rename_a_name_to_another_is_told_that_it_is_not_there() -> None:
    first, second = done(20, 40, Call.RENAME, AX, AY), done(25, 45, Call.RENAME, AX, AY)
    check([CREATED, first, replace(second, error=errno.ENOENT)])
    with pytest.raises(Unexplained):
        check([CREATED, first, second])


def test_a_rename_of_one_of_two_names_of_a_file_to_the_other_does_nothing() -> None:
    linked = [CREATED, done(12, 14, Call.LINK, AX, AY), done(20, 30, Call.RENAME, AX, AY)]
    assert check(linked) == {(7, 7, None, None, None, None)}


def test_a_mount_may_see_its_own_change_late_but_no_longer_than_the_call_takes() -> None:
    moved = [CREATED, done(20, 90, Call.RENAME, AX, AY)]
    elsewhere = replace(done(30, 40, Call.STAT, AX, error=errno.ENOENT), mount="other")
    late = done(50, 60, Call.STAT, AX, inode=7, links=1)
    check([*moved, elsewhere, late])
    for wrong in (replace(late, mount="other"), replace(late, begin=95, end=99)):
        with pytest.raises(Unexplained):
            check([*moved, elsewhere, wrong])


def test_a_number_may_be_in_use_again() -> None:
    history = [CREATED, done(20, 30, Call.UNLINK, AX), done(15, 40, Call.OPEN, AX, inode=7)]
    assert {state[AX] for state in check(history)} == {7, None}


def test_a_stale_inode_is_one_that_went_away_meanwhile() -> None:
    removed = [CREATED, done(20, 30, Call.UNLINK, AX)]
    check([*removed, done(15, 40, Call.STAT, AX, error=errno.ESTALE)])
    for begin, end in ((12, 14), (50, 60)):
        with pytest.raises(Unexplained):
            check([*removed, done(begin, end, Call.STAT, AX, error=errno.ESTALE)])


def test_a_directory_that_was_to_move_and_is_replaced_may_be_bad() -> None:
    removed = [done(0, 10, Call.MKDIR, AX), done(20, 30, Call.RMDIR, AX)]
    bad = done(15, 40, Call.RENAME, AX, BX, error=errno.EIO)
    check([*removed, bad])
    check([*removed, replace(bad, call=Call.EXCHANGE, paths=(BX, AX))])
    for wrong in (replace(bad, paths=(AX, AY)), replace(bad, paths=(BX, AX)), replace(bad, begin=32)):
        with pytest.raises(Unexplained):
            check([*removed, wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        [CREATED, done(20, 30, Call.STAT, AX, error=errno.ENOENT)],
        [CREATED, done(20, 30, Call.STAT, AX, inode=7, links=2)],
        [CREATED, done(20, 30, Call.STAT, AX, inode=8, links=1)],
        [CREATED, done(20, 30, Call.CREATE, AX, inode=8)],
        [CREATED, done(20, 30, Call.CREATE, AY, inode=7)],
        [CREATED, done(20, 30, Call.OPEN, AX, inode=8)],
        [CREATED, done(20, 30, Call.UNLISTED, AX)],
        [CREATED, done(20, 30, Call.LISTED, AY)],
        [CREATED, done(20, 30, Call.UNLINK, AX), done(40, 50, Call.LINKS, inode=7, links=1)],
        [CREATED, done(20, 30, Call.UNLINK, AX), done(20, 30, Call.UNLINK, AX)],
        [CREATED, done(20, 30, Call.UNLINK, AX, error=errno.ENOENT)],
        [CREATED, done(20, 30, Call.RENAME, AX, AY), done(40, 50, Call.STAT, AX, inode=7, links=1)],
        [CREATED, done(20, 30, Call.RENAME, AX, AY, error=errno.ENOENT)],
        [CREATED, done(20, 30, Call.EXCHANGE, AX, AY)],
        [CREATED, done(20, 30, Call.NOREPLACE, AX, AY, error=errno.EEXIST)],
        [CREATED, done(20, 30, Call.LINK, AX, AY), done(40, 50, Call.LINK, AX, AY)],
        [CREATED, done(20, 30, Call.RMDIR, AX)],
        [done(0, 10, Call.MKDIR, AX), done(20, 30, Call.UNLINK, AX)],
        [done(0, 10, Call.MKDIR, AX), done(20, 30, Call.LINK, AX, AY)],
        [done(0, 10, Call.MKDIR, AX), CREATED, done(20, 30, Call.RENAME, AX, AY, error=errno.ENOTDIR)],
        [CREATED, done(20, 30, Call.UNLINK, AX, error=errno.EIO)],
    ],
)  # fmt: skip
def test_an_answer_that_no_order_explains(wrong: list[Done]) -> None:
    with pytest.raises(Unexplained):
        check(wrong)


def test_one_order_must_explain_all_answers() -> None:
    """Each of two looks is explained by itself: the rename early, or late. Not both."""
    moved = replace(done(20, 90, Call.RENAME, AX, AY), mount="other")
    new, old = done(30, 40, Call.STAT, AY, inode=7, links=1), done(50, 60, Call.STAT, AX, inode=7, links=1)
    check([CREATED, moved, new])
    check([CREATED, moved, old])
    check([CREATED, moved, replace(old, begin=30, end=40), replace(new, begin=50, end=60)])
    with pytest.raises(Unexplained):
        check([CREATED, moved, new, old])


def _one_copy(seed: int, count: int) -> list[Done]:
    """What several programs would be told by one file system, each call taking effect at one instant in it."""
    draw = random.Random(seed)
    names: list[int | None] = list(EMPTY)
    history, inode = [], 100
    for at in range(count):
        begin, end = at * 10 - draw.randrange(60), at * 10 + draw.randrange(1, 60)
        path = draw.randrange(len(PATHS))
        value = names[path]
        match draw.randrange(4):
            case 0 if value is None:
                inode += 1
                names[path] = inode
                history.append(done(begin, end, Call.CREATE, path, inode=inode))
            case 0:
                history.append(done(begin, end, Call.CREATE, path, error=errno.EEXIST))
            case 1:
                names[path] = None
                history.append(done(begin, end, Call.UNLINK, path, error=0 if value else errno.ENOENT))
            case 2 if value is not None:
                links = names.count(value)
                history.append(done(begin, end, Call.STAT, path, inode=value, links=links))
            case 2:
                history.append(done(begin, end, Call.STAT, path, error=errno.ENOENT))
            case _:
                target = draw.choice([p for p in range(len(PATHS)) if p != path])
                if value is not None:
                    names[path], names[target] = None, value
                history.append(done(begin, end, Call.RENAME, path, target, error=0 if value else errno.ENOENT))
    return history


@pytest.mark.parametrize("seed", range(5))
def test_what_one_file_system_would_tell_is_explained(seed: int) -> None:
    check(_one_copy(seed, 200))


@pytest.mark.parametrize("seed", range(5))
def test_a_changed_answer_is_found(seed: int) -> None:
    """Of an inode's number. (Not every changed error is one that no order explains.)"""
    history = _one_copy(seed, 200)
    looks = [i for i, call in enumerate(history) if call.call is Call.STAT and not call.error]
    for index in looks[:: max(1, len(looks) // 5)]:
        changed = history.copy()
        changed[index] = replace(history[index], inode=history[index].inode + 10_000)
        with pytest.raises(Unexplained):
            check(changed)


def test_a_name_may_be_seen_before_and_the_links_after_a_change_of_the_same_mount() -> None:
    """Found by the stress: each look was at one of both alone, unless something else happened in between."""
    gone = [CREATED, done(12, 14, Call.LINK, AX, AY), done(20, 90, Call.UNLINK, AX)]
    elsewhere = replace(done(30, 40, Call.STAT, AX, error=errno.ENOENT), mount="other")
    check([*gone, elsewhere, done(50, 60, Call.STAT, AX, inode=7, links=1)])
    with pytest.raises(Unexplained):
        check([*gone, elsewhere, done(50, 60, Call.STAT, AX, inode=7, links=3)])


def test_link_may_be_refused_where_the_kernel_has_counted_a_link_down() -> None:
    lost = [CREATED, done(12, 14, Call.LINK, AX, AY), done(20, 30, Call.UNLINK, AY)]
    refused = done(40, 50, Call.LINK, AX, AZ, error=errno.ENOENT)
    check([*lost, refused])
    with pytest.raises(Unexplained):
        check([*lost, replace(refused, mount="other")])
    with pytest.raises(Unexplained):
        check([CREATED, refused])


def test_link_is_not_refused_before_the_last_name_is_gone() -> None:
    going = replace(done(20, 90, Call.UNLINK, AX), mount="other")
    refused = done(30, 40, Call.LINK, AX, AZ, error=errno.ENOENT)
    still = done(50, 60, Call.STAT, AX, inode=7, links=1)
    for removal in (going, replace(going, call=Call.RENAME, paths=(AY, AX), error=errno.ENOENT)):
        check([CREATED, removal, still])
        with pytest.raises(Unexplained):
            check([CREATED, removal, refused, still])
