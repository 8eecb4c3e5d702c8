"""The kernel's cache of a listing: who may fill it, and when it is believed."""

from __future__ import annotations

from nfsfuse.machines.kernel_listing import KernelListing


def test_the_first_listing_fills_what_the_second_uses() -> None:
    listing = KernelListing()
    assert listing.opened(1, 0) == (True, False)
    listing.released(1)
    assert listing.opened(2, 0) == (True, True)


def test_two_at_once_may_share_it_while_nothing_changes() -> None:
    """find(1) has the first directory open twice."""
    listing = KernelListing()
    assert listing.opened(1, 0) == (True, False)
    assert listing.opened(2, 0) == (True, True)
    assert not listing.must_drop(1)
    assert not listing.must_drop(2)


def test_a_change_elsewhere_drops_it() -> None:
    listing = KernelListing()
    assert not listing.changed_elsewhere(), "nothing was listed yet"
    listing.opened(1, 0)
    listing.released(1)
    assert listing.changed_elsewhere()
    assert not listing.changed_elsewhere(), "it is dropped already"
    assert listing.opened(2, 1) == (True, False)


def test_what_an_old_listing_may_still_bring_is_never_shared() -> None:
    listing = KernelListing()
    listing.opened(1, 0)
    assert listing.changed_elsewhere()
    assert listing.must_drop(1), "an answer to it may have been on its way"
    assert listing.opened(2, 1) == (False, False)
    assert not listing.must_drop(2), "it neither fills nor uses the cache"
    assert listing.must_drop(1), "it goes on with what it has listed before"
    assert listing.changed_elsewhere(), "it may have brought something again"
    listing.released(1)
    assert listing.opened(3, 2) == (True, False)
    assert listing.opened(4, 2) == (True, True)


def test_after_a_change_here_it_is_listed_anew() -> None:
    """The kernel sees to that itself, unless it does not know of the change: its program was killed."""
    listing = KernelListing()
    listing.opened(1, 0)
    assert listing.opened(2, 1) == (True, False)
    assert not listing.must_drop(1), "the kernel compares versions of its own"
