"""How large the kernel surely knows a file to be: a pure machine.

It learns sizes by its own writes and truncations. Of the sizes in other answers it may ignore any, so they can
only make this smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Question:
    """See `KernelSize.asking`. *overtaken*: the kernel was told of a smaller size meanwhile."""

    size: int
    found: bool = False
    overtaken: bool = False


class KernelSize:
    """A lower bound, in bytes, of what the kernel believes of one file's size."""

    __slots__ = ("_bound", "_changing", "_questions", "behind")

    def __init__(self) -> None:
        self.behind = False
        """Others may have made the file longer and not told, as nobody has it open here."""
        self._bound = 0
        self._changing = 0
        self._questions: tuple[Question, ...] = ()  # not a list: every inode has one of these, mostly empty

    def suffices(self, size: int) -> bool:
        """Whether the kernel need not be made to learn *size*, or cannot be now."""
        return size <= self._bound or self._changing > 0

    @contextmanager
    def changed_here(self) -> Iterator[None]:
        """While the kernel waits for the answer to an operation that changes the size, it takes the size from
        nobody else (FUSE_I_SIZE_UNSTABLE)."""
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1

    def told(self, size: int) -> None:
        """An answer to the kernel says so; it may believe it or not."""
        self._bound = min(self._bound, size)
        for question in self._questions:
            question.overtaken |= size < question.size

    def at_least(self, size: int) -> None:
        """The kernel believes so, or more: it has written that far, or cut the file there."""
        self._bound = max(self._bound, size)

    @contextmanager
    def asking(self, size: int) -> Iterator[Question]:
        """While it is looked whether the kernel believes *size* or more; `found` says that it does."""
        question = Question(size)
        self._questions += (question,)
        try:
            yield question
        finally:
            self._questions = tuple(other for other in self._questions if other is not question)
        if question.found and not question.overtaken:
            self.at_least(size)
