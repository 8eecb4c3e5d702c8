"""Rounding to pages: the ways of `nfsfuse.protocol.pages`, and that no other module has its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsfuse.protocol import pages
from nfsfuse.protocol.tokens import RANGE_END
from nfsfuse.protocol.types import PAGE_SIZE

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = (ROOT / "nfsfuse", ROOT / "server" / "nfsfuse_server")
HOME = Path(pages.__file__).resolve()

offsets = st.one_of(
    st.integers(0, 3 * PAGE_SIZE),
    st.builds(lambda page, more: page * PAGE_SIZE + more, st.integers(1, 2**50), st.integers(-1, 1)),
)


@given(offsets)
def test_an_offset_lies_in_one_page(offset: int) -> None:
    number, within = divmod(offset, PAGE_SIZE)
    start = pages.page_start(offset)
    assert start == number * PAGE_SIZE
    assert offset == start + within
    assert 0 <= within < PAGE_SIZE


@given(offsets)
def test_where_a_page_begins_both_ways_agree(offset: int) -> None:
    start, end = pages.page_start(offset), pages.page_end(offset)
    assert start <= offset <= end
    assert end - start == (PAGE_SIZE if offset % PAGE_SIZE else 0)


@given(offsets, offsets)
def test_a_range_contains_pages_and_is_contained(start: int, size: int) -> None:
    end = start + size
    outer, inner = pages.pages_around(start, end), pages.pages_within(start, end)
    assert outer == (pages.page_start(start), pages.page_end(end))
    assert inner == (pages.page_end(start), pages.page_start(end))
    assert pages.pages_of(start, size) == outer


def test_a_request_past_the_last_offset_ends_there() -> None:
    start = RANGE_END - PAGE_SIZE
    assert pages.pages_of(start + 1, 2 * PAGE_SIZE) == (start, RANGE_END)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, PAGE_SIZE, True), (0, RANGE_END, True), (PAGE_SIZE, 3 * PAGE_SIZE, True),
        (0, 0, False), (PAGE_SIZE, PAGE_SIZE, False), (PAGE_SIZE, 0, False), (-PAGE_SIZE, PAGE_SIZE, False),
        (1, PAGE_SIZE, False), (0, PAGE_SIZE - 1, False), (0, RANGE_END + PAGE_SIZE, False),
    ],
)  # fmt: skip
def test_ranges_of_whole_pages(start: int, end: int, expected: bool) -> None:
    assert pages.is_page_range(start, end) is expected


# --- one spelling ---


ROUNDING = (ast.FloorDiv, ast.Mod, ast.BitAnd)
SHIFTS = (ast.LShift, ast.RShift)
PAGE_NUMBERS = (PAGE_SIZE, PAGE_SIZE - 1)


def roundings(source: str) -> Iterator[str]:
    """The places of *source* that round to pages by arithmetic of their own."""

    def is_page(node: ast.expr) -> bool:
        """PAGE_SIZE or its number, also in ``~(PAGE_SIZE - 1)``; not the permission bits, which are octal."""
        for part in ast.walk(node):
            if "PAGE_SIZE" in (getattr(part, "id", None), getattr(part, "attr", None)):
                return True
            if isinstance(part, ast.Constant) and type(part.value) is int and part.value in PAGE_NUMBERS:
                return not (ast.get_source_segment(source, part) or "").startswith("0o")
        return False

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(left=left, op=op, right=right) | ast.AugAssign(target=left, op=op, value=right):
                found = isinstance(op, ROUNDING) and (
                    is_page(right) or (isinstance(op, ast.BitAnd) and is_page(left))
                )
                found |= isinstance(op, SHIFTS) and any(
                    isinstance(side, ast.BinOp) and isinstance(side.op, SHIFTS) for side in (left, right)
                )
            case ast.Call(func=ast.Name(id="divmod"), args=[_, size]):
                found = is_page(size)
            case _:
                continue
        if found:
            yield f"{node.lineno}: {ast.get_source_segment(source, node)}"


@pytest.mark.parametrize(
    "spelling",
    [
        "a // PAGE_SIZE * PAGE_SIZE", "-(-a // PAGE_SIZE)", "a % PAGE_SIZE", "a - a % types.PAGE_SIZE",
        "a & ~(PAGE_SIZE - 1)", "a & ~0xFFF", "~4095 & a", "divmod(a, PAGE_SIZE)", "a // 4096", "a >> 12 << 12",
        "(a + PAGE_SIZE - 1) // PAGE_SIZE", "a //= PAGE_SIZE", "a &= ~0xFFF",
    ],
)  # fmt: skip
def test_a_new_spelling_would_be_found(spelling: str) -> None:
    assert list(roundings(spelling))


@pytest.mark.parametrize(
    "innocent", ["16 * PAGE_SIZE", "end - PAGE_SIZE", "mode & 0o7777", "1 << 12", "mode >> 12"]
)
def test_what_rounds_nothing_is_let_be(innocent: str) -> None:
    assert not list(roundings(innocent))


def test_only_one_module_rounds_to_pages() -> None:
    modules = [path for folder in PRODUCT for path in folder.rglob("*.py")]
    assert HOME in modules
    found = [
        f"{path.relative_to(ROOT)}:{place}"
        for path in modules
        if path != HOME
        for place in roundings(path.read_text())
    ]
    assert not found, "say it by a function of nfsfuse.protocol.pages"
    assert list(roundings(HOME.read_text()))
