"""What a client believes of an inode's attributes: scenarios, and random sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.machines.attribute_cache import UNSETTLED_TELLINGS, XATTRS_MAX, AttributeCache
from nfsfuse.machines.tellings import Age
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes

NONE, SHARED, EXCLUSIVE = TokenMode.NONE, TokenMode.SHARED, TokenMode.EXCLUSIVE


def attributes(ctime: int, size: int = 100) -> Attributes:
    return Attributes(9, 0o100644, 1, 0, 0, 0, size, 8, ctime, ctime, ctime, 0)


def cache(mode: TokenMode, ctime: int = 10) -> AttributeCache:
    made = AttributeCache()
    made.granted(mode)
    made.learned(attributes(ctime))
    return made


def test_without_a_token_nothing_is_known() -> None:
    assert cache(NONE).known is None
    assert cache(NONE).size() is None


def test_learning_the_same_again_is_no_difference() -> None:
    known = cache(SHARED)
    assert not known.learned(attributes(10))
    assert known.learned(attributes(12))


def test_a_weaker_grant_takes_nothing_away() -> None:
    known = cache(EXCLUSIVE)
    known.granted(SHARED)
    assert known.may_change_here()


@pytest.mark.parametrize(
    ("mode", "recalls", "known", "may"),
    [
        (EXCLUSIVE, 0, True, True),
        (EXCLUSIVE, 1, True, False),
        (EXCLUSIVE, 0, False, False),
        (SHARED, 0, True, False),
    ],
)
def test_who_may_change_size_and_times_here(mode: TokenMode, recalls: int, known: bool, may: bool) -> None:
    made = cache(mode)
    made.recalls = recalls
    if not known:
        made.forget_value()
    assert made.may_change_here() is may
    if not may:
        with pytest.raises(AssertionError):
            made.written(5)


def test_a_write_grows_the_file_and_never_shrinks_it() -> None:
    made = cache(EXCLUSIVE)
    made.written(50)
    assert made.known is not None
    assert (made.known.size, made.known.blocks) == (100, 8)
    made.written(9000)
    assert (made.known.size, made.known.blocks) == (9000, 18)
    assert (made.known.atime_ns, made.known.mtime_ns, made.known.ctime_ns) == (10, 10, 10)


def test_the_times_of_a_write_are_not_known_before_it_is_written_back() -> None:
    made = cache(EXCLUSIVE)
    assert made.times_are_known()
    made.written(50)
    assert not made.times_are_known()
    made.written_back(attributes(20, size=100), Age.NEWEST, all_of_it=False)
    assert not made.times_are_known()
    made.written_back(attributes(21, size=100), Age.NEWEST, all_of_it=True)
    assert made.times_are_known()
    made.forget_value()
    assert not made.times_are_known()


def test_changed_here_the_server_knows_less() -> None:
    made = cache(EXCLUSIVE)
    made.written(5000)
    changed = replace(attributes(10**9, size=1), mode=0o100600)
    assert made.learned(changed), "that it has another mode, say"
    assert made.known == replace(changed, size=5000, blocks=10, mtime_ns=10)
    made.forget_value()
    assert made.size() == 5000
    assert made.known is not None
    assert not made.may_be_trusted(made.known), "the write-back brings the times"


def test_written_back_the_servers_times_are_known() -> None:
    made = cache(EXCLUSIVE)
    made.written(5000)
    assert not made.written_back(attributes(20, size=4096), Age.NEWEST, all_of_it=False)
    assert made.changed_here
    assert made.written_back(attributes(21, size=5000), Age.NEWEST, all_of_it=True)
    assert not made.changed_here
    assert made.known == attributes(21, size=5000)


def test_changes_are_written_back_before_the_token_goes() -> None:
    made = cache(EXCLUSIVE)
    made.written(5000)
    with pytest.raises(AssertionError, match="written back"):
        made.reduced(SHARED)
    made.written_back(attributes(21, size=5000), Age.NEWEST, all_of_it=True)
    made.reduced(SHARED)
    assert made.size() == 5000
    made.reduced(EXCLUSIVE)
    assert made.mode is SHARED
    made.reduced(NONE)
    assert made.known is None


def test_a_write_back_that_ends_after_the_token_went_tells_nothing() -> None:
    made = cache(SHARED)
    made.reduced(NONE)
    assert not made.written_back(attributes(50), Age.NEWEST, all_of_it=True)
    assert made.known is None


def test_extended_attributes_are_few_and_go_with_the_token() -> None:
    made = cache(SHARED)
    for number in range(XATTRS_MAX + 3):
        made.learned_xattr(b"user.%d" % number, None)
    assert len(made.xattrs) == XATTRS_MAX
    made.reduced(NONE)
    assert made.xattrs == {}
    made.learned_xattr(b"user.x", b"v")
    assert made.xattrs == {}
    made.granted(SHARED)
    made.recalls = 1
    made.learned_xattr(b"user.x", b"v")
    assert made.xattrs == {}


steps = st.lists(
    st.tuples(
        st.sampled_from(["shared", "exclusive", "learn", "write", "back", "recall", "forget"]),
        st.integers(1, 50),
    ),
    max_size=30,
)


@given(steps)
@settings(max_examples=200)
def test_in_any_order(sequence: list[tuple[str, int]]) -> None:
    """The size is the true one whenever it is known: the server's, or what was written here on top of it."""
    made, server, here = AttributeCache(), attributes(1, 0), 0
    for what, number in sequence:
        match what:
            case "shared" | "exclusive":
                made.granted(SHARED if what == "shared" else EXCLUSIVE)
                made.learned(server)
            case "learn":
                if made.mode is NONE:  # only then may somebody else have changed it
                    server = replace(server, size=number, ctime_ns=server.ctime_ns + 1)
                    here = 0
                made.learned(server)
            case "write" if made.may_change_here():
                made.written(number)
                here = max(here, number)
            case "back" if made.changed_here:
                server = replace(server, size=max(server.size, here), ctime_ns=server.ctime_ns + 1)
                made.written_back(server, Age.NEWEST, all_of_it=True)
            case "recall" if not made.changed_here:
                made.reduced(NONE if number % 2 else SHARED)
            case "forget":
                made.forget_value()
        if made.known is not None:
            assert made.mode is not NONE
            assert made.size() == max(server.size, here)
        assert not made.changed_here or made.mode is EXCLUSIVE


def test_a_directory_that_the_kernel_goes_on_changing_is_not_believed() -> None:
    """Else each change would take a notification; it asks as often as it is told nothing to believe."""
    directory = cache(SHARED)
    for change in range(3):
        known = attributes(20 + change)
        directory.learned(known)
        directory.changed_by_kernel()
        assert not any(directory.told(known) for _ in range(UNSETTLED_TELLINGS - 1))
        assert not directory.kernel_trusts
    assert not directory.told(known)
    assert directory.told(known), "it has settled"
    assert directory.kernel_trusts
    directory.reduced(NONE)
    assert not directory.told(known)
    assert not directory.kernel_trusts


def test_a_kernel_that_waits_for_its_write_forgets_by_itself() -> None:
    file = cache(EXCLUSIVE)
    assert file.known is not None
    assert not file.has_to_be_told(), "it believes nothing"
    assert file.told(file.known)
    assert file.has_to_be_told()
    file.written_by_kernel()
    assert not file.has_to_be_told()
    assert file.kernel_trusts, "a recall tells it: perhaps the answer is still on its way"
    assert file.told(file.known)
    assert file.has_to_be_told(), "what it was told since it may keep"
