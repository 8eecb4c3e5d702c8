"""Renames that take names of the same two directories in opposite orders: none waits for another for ever.

A deadlock shows as the rig's deadline: the mounts are aborted, and the programs fail.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mount.conftest import Pair

TURNS = 60

RENAME_EXCHANGE = 2

libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    if libc.renameat2(-100, bytes(one), -100, bytes(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def together(*programs: Callable[[], None]) -> None:
    """Run all of them at once; raise what any of them raises."""
    with ThreadPoolExecutor(len(programs)) as threads:
        for running in [threads.submit(program) for program in programs]:
            running.result()


def back_and_forth(here: Path, there: Path) -> None:
    for _ in range(TURNS):
        here.rename(there)
        there.rename(here)


def make(pair: Pair, *names: str) -> None:
    for directory in ("a", "b"):
        (pair.export / directory).mkdir()
    for name in names:
        (pair.export / name).write_text(name)


def seen(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_two_files_cross(pair: Pair) -> None:
    make(pair, "a/x", "b/z")
    one, two = pair.one, pair.two
    together(
        lambda: back_and_forth(one / "a/x", one / "b/y"),
        lambda: back_and_forth(two / "b/z", two / "a/w"),
    )
    assert seen(one) == seen(two) == seen(pair.export) == {"a/x": "a/x", "b/z": "b/z"}


def test_crossing_renames_exchanges_and_looks_on_both_mounts(pair: Pair) -> None:
    make(pair, "a/x", "b/z", "a/p", "b/q", "a/r", "b/s")
    one, two = pair.one, pair.two

    def exchanges(view: Path, first: str, second: str) -> None:
        for _ in range(2 * TURNS):
            exchange(view / first, view / second)

    def looks(view: Path) -> None:
        for _ in range(TURNS):
            for directory in ("a", "b"):
                assert len(os.listdir(view / directory)) >= 1
            for name in ("a/p", "b/q", "a/r", "b/s"):
                assert (view / name).stat().st_nlink == 1, "exchanged names are always there"

    together(
        lambda: back_and_forth(one / "a/x", one / "b/y"),
        lambda: back_and_forth(two / "b/z", two / "a/w"),
        lambda: exchanges(one, "a/p", "b/q"),
        lambda: exchanges(two, "b/s", "a/r"),
        lambda: looks(one),
        lambda: looks(two),
    )
    assert seen(one) == seen(two) == seen(pair.export) == {name: name for name in seen(pair.export)}


def test_a_file_is_replaced_again_and_again_while_it_is_open_elsewhere(pair: Pair) -> None:
    make(pair, "a/target")

    def replace(view: Path, directory: str, digit: str) -> None:
        for _ in range(TURNS):
            (view / directory / digit).write_text(digit * 1000)
            (view / directory / digit).rename(view / "a/target")

    def read(view: Path) -> None:
        for _ in range(TURNS):
            with (view / "a/target").open() as file:
                first = file.read()
                file.seek(0)
                assert file.read() == first, "what is open stays what it is"
                assert len(set(first)) == 1 or first == "a/target"

    together(
        lambda: replace(pair.one, "a", "1"),
        lambda: replace(pair.two, "b", "2"),
        lambda: read(pair.one),
        lambda: read(pair.two),
    )
    assert os.listdir(pair.one / "a") == os.listdir(pair.two / "a") == ["target"]
    assert seen(pair.one) == seen(pair.two) == seen(pair.export)


def test_links_in_several_directories_are_counted_alike_everywhere(pair: Pair) -> None:
    make(pair, "a/file")

    def link_and_unlink(view: Path, directory: str, name: str) -> None:
        for _ in range(TURNS):
            try:
                os.link(view / "a/file", view / directory / name)
            except FileNotFoundError:
                # vfs_link() refuses what has no link left as far as the kernel believes, which counts links
                # down by itself and does not ask before it refuses: a limit (docs/coherence.md).
                assert (view / "a/file").stat().st_nlink >= 1
                continue
            assert 2 <= (view / "a/file").stat().st_nlink <= 5
            (view / directory / name).unlink()

    together(
        *(
            lambda view=view, directory=directory, name=name: link_and_unlink(view, directory, name)
            for view, name in ((pair.one, "one"), (pair.two, "two"))
            for directory in ("a", "b")
        )
    )
    assert [(view / "a/file").stat().st_nlink for view in (pair.one, pair.two, pair.export)] == [1, 1, 1]
