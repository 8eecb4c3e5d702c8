"""Node ids: reused numbers, forgotten lookups."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.machines.inodes import FORGOTTEN_MAX, ROOT, InodeTable, generation_of
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import Attributes, InodeHandle, Node


def node(ino: int, handle: bytes) -> Node:
    return Node(InodeHandle(handle), Attributes(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))


@pytest.fixture
def table() -> InodeTable:
    return InodeTable(node(77, b"root"))


def test_the_root_is_node_1_whatever_its_number_and_is_never_forgotten(table: InodeTable) -> None:
    assert table[1].handle == b"root"
    assert table.by_handle(InodeHandle(b"root")) is table[ROOT]
    assert table.forget(1, 1) is None
    assert len(table) == 1
    table.check()


def test_nobody_else_is_node_1(table: InodeTable) -> None:
    with pytest.raises(AssertionError):
        table.known(node(1, b"impostor"))


def test_an_inode_is_known_once_however_often_it_is_told(table: InodeTable) -> None:
    first = table.known(node(5, b"five"))
    assert table.known(node(5, b"five")) is first
    assert table[5] is first
    assert len(table) == 2


def test_it_is_forgotten_with_its_last_lookup(table: InodeTable) -> None:
    inode = table.known(node(5, b"five"))
    inode.lookups = 3
    assert table.forget(5, 2) is None
    assert table.forget(5, 1) is inode
    assert table.by_handle(InodeHandle(b"five")) is None
    table.check()


def test_more_is_never_forgotten_than_was_told(table: InodeTable) -> None:
    table.known(node(5, b"five")).lookups = 1
    with pytest.raises(AssertionError):
        table.forget(5, 2)


def test_a_number_used_again_has_another_generation_and_takes_the_lookups_over(table: InodeTable) -> None:
    former = table.known(node(5, b"first"))
    former.lookups = 2
    inode = table.known(node(5, b"second"))
    assert inode is not former
    assert inode.generation != former.generation
    assert inode.lookups == 2
    assert table.by_handle(InodeHandle(b"first")) is None
    inode.lookups += 1
    assert table.forget(5, 2) is None, "the kernel forgets the former by the same number"
    assert table.forget(5, 1) is inode
    table.check()


def test_who_has_noted_an_inode_by_its_number_is_not_given_the_next_one(table: InodeTable) -> None:
    """Found by the stress of names: a directory's attributes were told of the file that had its number by then,
    which the kernel took for broken: close(2) of the file, open elsewhere, ended in EIO."""
    former = table.known(node(5, b"first"))
    assert table.same(5, former.generation) is former
    inode = table.known(node(5, b"second"))
    assert table.same(5, former.generation) is None
    assert table.same(5, inode.generation) is inode
    assert table.same(6, 0) is None


def test_an_old_answer_does_not_take_a_number_back(table: InodeTable) -> None:
    first, second = node(5, b"first"), node(5, b"second")
    assert table.still(first) is table.known(first)
    inode = table.known(second)
    with pytest.raises(FsError, match="in use again") as failed:
        table.still(first)
    assert failed.value.errno == errno.ESTALE
    assert table.still(second) is inode
    assert table.forget(5, 0) is inode
    assert table.still(first).handle == b"first", "nobody has the number"
    table.check()


def test_as_many_handles_are_remembered_as_there_is_room_for() -> None:
    table = InodeTable(node(2, b"root"))
    for number in range(10, FORGOTTEN_MAX + 11):
        table.known(node(number, b"%d" % number)).lookups = 1
        table.forget(number, 1)
    assert table.forgotten(10) is None
    assert table.forgotten(11) == b"11"
    table.known(node(11, b"another"))
    assert table.forgotten(11) is None


def test_a_generation_is_the_same_in_every_table() -> None:
    inode = InodeTable(node(2, b"root")).known(node(10, b"handle"))
    assert inode.generation == generation_of(InodeHandle(b"handle"))
    assert 0 <= inode.generation < 2**32


steps = st.lists(st.tuples(st.booleans(), st.integers(2, 4), st.integers(0, 2), st.integers(1, 3)), max_size=40)


@given(steps)
@settings(max_examples=200)
def test_in_any_order(sequence: list[tuple[bool, int, int, int]]) -> None:
    """An entry is there exactly while the kernel has not forgotten all it was told by its number."""
    table = InodeTable(node(77, b"root"))
    counts: dict[int, int] = {}
    for tells, number, version, count in sequence:
        if tells:
            table.known(node(number, b"%d.%d" % (number, version))).lookups += count
            counts[number] = counts.get(number, 0) + count
            assert table[number].handle == b"%d.%d" % (number, version)
        elif number in counts:
            forgotten = min(count, counts[number])
            counts[number] -= forgotten
            assert (table.forget(number, forgotten) is not None) == (counts[number] == 0)
            if counts[number] == 0:
                del counts[number]
        table.check()
        assert len(table) == 1 + len(counts)


def test_a_stand_in_is_of_no_inode(table: InodeTable) -> None:
    """Each is another one for the kernel, which finds that it is stale when it wants something of it."""
    inode = table.known(node(5, b"file"))
    first, second = table.stand_in(inode), table.stand_in(inode)
    assert len({inode.node_id, first.node_id, second.node_id}) == 3
    with pytest.raises(FsError) as failure:
        table[first.node_id]
    assert failure.value.errno == errno.ESTALE
    assert table.get(first.node_id) is None
    assert table.forget(first.node_id, 1) is None
    assert len(table) == 2
    table.check()
