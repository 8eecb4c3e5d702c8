"""What must not be done, counted: requests that need not be, small ones where large ones would do, memory."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from nfsfuse.engine.closes import RELEASE_SECONDS
from nfsfuse.protocol.limits import RELEASES_MAX
from scripts.proof.counts import Counts, counts, daemon_of, resident_bytes
from scripts.rig.processes import poll_until
from tests.mount.conftest import TEST_SECONDS_MAX, Proof

MIB = 1 << 20

WARM_SIZE = 256 * MIB
WARM_SIZE_SOAK = 1024 * MIB
"""With ``--soak``. What is counted does not depend on it."""

SPARSE_SIZE = 1024 * MIB
SPARSE_SIZE_SOAK = 4096 * MIB
"""With ``--soak``. Four times the budget, or sixteen."""

BUDGET = 256 * MIB
"""Of the daemon's page cache, by default."""

LAUNDERED_PAGES = 1024

FILES = 200
"""Made one after the other."""


@pytest.fixture(scope="module")
def proof(proof: Proof) -> Iterator[Proof]:
    proof.rig.deadline(5 * TEST_SECONDS_MAX)
    yield proof
    proof.rig.deadline(None)


def touch_all(mapping: mmap.mmap) -> int:
    """Load a byte of every page; their sum."""
    return sum(mapping[at] for at in range(0, len(mapping), mmap.PAGESIZE))


def read_all(descriptor: int, size: int) -> int:
    """Read from the start to *size*; how many bytes came."""
    buffer = bytearray(MIB)
    return sum(os.preadv(descriptor, [buffer], at) for at in range(0, size, MIB))


def await_releases(proof: Proof, mount: Path, before: Counts) -> None:
    """Wait until the server has been told of what was closed since *before*, of which there is something."""

    def told() -> bool:
        return bool((counts(proof.rig, mount) - before).requests["Release"])

    poll_until(told, TEST_SECONDS_MAX, "a Release")


def await_accesses(proof: Proof, mount: Path, before: Counts) -> None:
    """Likewise, of the first read after a write."""

    def told() -> bool:
        return bool((counts(proof.rig, mount) - before).requests["Accessed"])

    poll_until(told, TEST_SECONDS_MAX, "an Accessed")


def test_a_second_read_or_scan_makes_no_upcall_and_no_request(
    proof: Proof, request: pytest.FixtureRequest
) -> None:
    one = proof.mounts[0]
    size = WARM_SIZE_SOAK if request.config.getoption("--soak") else WARM_SIZE
    with (proof.mounts[1] / "warm").open("wb") as file:
        file.truncate(size)
    descriptor = os.open(one / "warm", os.O_RDONLY)
    try:
        assert read_all(descriptor, size) == size
        passes = []
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping:
            for _ in range(3):
                before = counts(proof.rig, one)
                assert read_all(descriptor, size) == size
                assert touch_all(mapping) == 0
                passes.append(counts(proof.rig, one) - before)
    finally:
        os.close(descriptor)
    # More than one, as the system may want a few pages back for something else at any time.
    assert any(not done.upcalls and not done.requests for done in passes), passes
    assert all(done.upcalls["read"] < size / MIB for done in passes), passes


def test_opening_it_again_makes_no_request(proof: Proof) -> None:
    """Upcalls, yes: the kernel tells of each open. But no reads, and nothing that the server hears of."""
    one = proof.mounts[0]
    before = counts(proof.rig, one)
    (one / "again").write_bytes(bytes(MIB))
    assert len((one / "again").read_bytes()) == MIB
    await_releases(proof, one, before)
    await_accesses(proof, one, before)
    before = counts(proof.rig, one)
    assert len((one / "again").read_bytes()) == MIB
    done = counts(proof.rig, one) - before
    assert done.upcalls["read"] == 0, done
    assert not done.requests, done


def test_files_made_one_after_the_other_share_the_messages_of_their_closes(proof: Proof) -> None:
    one = proof.mounts[0]
    (one / "many").mkdir()
    before = counts(proof.rig, one)
    began = time.monotonic()
    for number in range(FILES):
        (one / "many" / str(number)).write_bytes(b"x" * 4096)
    seconds = time.monotonic() - began
    await_releases(proof, one, before)
    done = counts(proof.rig, one) - before
    assert done.requests["Create"] == FILES, done
    # One for each RELEASE_SECONDS, or for as many as fit into one.
    assert done.requests["Release"] <= 2 + FILES / RELEASES_MAX + seconds / RELEASE_SECONDS, (done, seconds)


def test_a_sequential_write_is_sent_in_large_writes(proof: Proof) -> None:
    one, size = proof.mounts[0], 64 * MIB
    before = counts(proof.rig, one)
    descriptor = os.open(one / "written", os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(0, size, 65536):
            os.write(descriptor, bytes(65536))
        os.fsync(descriptor)
        done = counts(proof.rig, one) - before
    finally:
        os.close(descriptor)
    assert done.bytes_sent == size, done
    assert done.requests["Write"] == done.writes_sent
    assert done.bytes_sent / done.writes_sent >= 512 * 1024, done


SYNCED_WRITES: Final = 20


@pytest.mark.parametrize(
    ("flags", "write_flags"),
    [(0, 0), (os.O_SYNC, 0), (os.O_DSYNC, 0), (0, os.RWF_SYNC), (0, os.RWF_DSYNC)],
    ids=["fsync", "O_SYNC", "O_DSYNC", "RWF_SYNC", "RWF_DSYNC"],
)
def test_a_small_write_and_its_fsync_are_one_request(proof: Proof, flags: int, write_flags: int) -> None:
    """Also if it is a synchronous write: past its cache the kernel does not ask for the fsync of that."""
    one = proof.mounts[0]
    descriptor = os.open(one / "synced", os.O_RDWR | os.O_CREAT | flags)
    try:
        os.pwrite(descriptor, bytes(4096), 0)
        before = counts(proof.rig, one)
        for turn in range(SYNCED_WRITES):
            os.pwritev(descriptor, [bytes(4096)], 4096 * turn, write_flags)
            if not flags | write_flags:
                os.fsync(descriptor)
        done = counts(proof.rig, one) - before
    finally:
        os.close(descriptor)
    assert done.upcalls["fsync"] == (0 if flags | write_flags else SYNCED_WRITES), done
    assert done.requests["Write"] == SYNCED_WRITES, done
    # One, if for a second the system had something else to do between a write and its fsync.
    assert done.requests["Fsync"] <= 1, done


def test_memory_stays_within_the_budget_while_a_large_file_is_read(
    proof: Proof, request: pytest.FixtureRequest
) -> None:
    size = SPARSE_SIZE_SOAK if request.config.getoption("--soak") else SPARSE_SIZE
    one = proof.mounts[2]
    daemon = daemon_of(one)
    with (proof.mounts[1] / "sparse").open("wb") as file:
        file.truncate(size)
    descriptor = os.open(one / "sparse", os.O_RDONLY)
    most = 0
    try:
        buffer = bytearray(4 * MIB)
        for at in range(0, size, len(buffer)):
            assert os.preadv(descriptor, [buffer], at) == len(buffer)
            most = max(most, resident_bytes(daemon))
            # The kernel's own cache is to stay small: this is about the daemon's.
            os.posix_fadvise(descriptor, at, len(buffer), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    (one / "sparse").unlink()
    print(f"{most / MIB:.0f} MiB at most while {size // MIB} MiB are read")
    assert most <= BUDGET + 100 * MIB, f"{most / MIB:.0f} MiB"


def test_taking_many_dirty_pages_is_not_an_upcall_each(proof: Proof) -> None:
    """Mount 1 has a thousand mapped pages dirty; mount 2 asks for all of them."""
    one, two = proof.mounts[:2]
    before = counts(proof.rig, one)
    ran = proof.programs.run("dirty_pages", LAUNDERED_PAGES, one / "dirty", two / "dirty", seconds=60)
    assert ran.status == 0, ran
    done = counts(proof.rig, one) - before
    assert done.upcalls["write"] < LAUNDERED_PAGES / 16, done


WHOLE_APPEND = 255 * mmap.PAGESIZE
"""Bytes: a request has 256 pages, and a buffer that begins in the middle of one touches one more."""


@pytest.mark.parametrize(("size", "pieces"), [(WHOLE_APPEND, 1), (MIB, 2), (2 * MIB, 3)])
def test_an_append_of_255_pages_is_one_wherever_its_buffer_begins(
    proof: Proof, size: int, pieces: int
) -> None:
    """How far the README's promise 3 goes: larger ones the kernel cuts."""
    mount = proof.mounts[0]
    descriptor = os.open(mount / f"appended-{size}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with mmap.mmap(-1, size + mmap.PAGESIZE) as pages, memoryview(pages)[100 : 100 + size] as unaligned:
        before = counts(proof.rig, mount)
        assert os.write(descriptor, unaligned) == size
        assert (counts(proof.rig, mount) - before).upcalls["write"] == pieces
    os.close(descriptor)
