"""What the kernel surely knows of a file's size."""

from __future__ import annotations

from nfsfuse.machines.kernel_size import KernelSize


def test_its_own_writes_and_truncations_are_known() -> None:
    size = KernelSize()
    assert size.suffices(0)
    assert not size.suffices(1)
    size.at_least(100)
    assert size.suffices(100)
    assert not size.suffices(101)


def test_an_answer_only_makes_it_less_sure() -> None:
    size = KernelSize()
    size.told(100)
    assert not size.suffices(100), "it may have ignored the answer"
    size.at_least(100)
    size.told(50)
    assert not size.suffices(51), "or believed it"
    assert size.suffices(50)


def test_what_it_was_found_to_believe_is_known_unless_it_was_told_otherwise_meanwhile() -> None:
    size = KernelSize()
    with size.asking(100) as question:
        size.told(100)  # the answer to the question itself
        question.found = True
    assert size.suffices(100)
    with size.asking(200) as question:
        question.found = True
        size.told(150)
    assert not size.suffices(200)
    with size.asking(300):
        pass
    assert not size.suffices(300), "it was not found"


def test_nothing_can_be_taught_while_it_changes_the_size_itself() -> None:
    size = KernelSize()
    with size.changed_here():
        assert size.suffices(100)
    assert not size.suffices(100)
