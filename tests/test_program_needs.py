"""The daemon needs nothing of a program that waits for it (docs/coherence.md): what in the client opens a path,
by where it is. Whoever adds to these tables says why nobody waits for a program there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "nfsfuse"

PROC = {
    # file: what it names of /proc, and why that waits for no program
    "cli/mounts.py": {"/proc/self/mounts", "/proc/self/mountinfo"},  # the daemon's own
    "cli/guardian.py": {"/proc/{}/status", "/proc/{}/schedstat"},  # the daemon's, which needs nothing of it
    "fuse/notifications/looks.py": {"/proc/self/task/{}/wchan"},  # a thread of the daemon's own
    "fuse/binding/supplement.py": {"/proc/self/maps"},  # the daemon's own
    "fuse/upcalls/requesters.py": {"/proc/{}/status", "/proc/{}/stat"},  # in threads that nobody waits for
    # takes no lock: tests/fuse/upcalls/test_requesters.py
    "fuse/notifications/_notifications.c": {"/proc/%d/schedstat"},
}

PATHS = {
    # file: which of `OPENING` it calls, and why the event loop does not wait for its own mount there
    # in threads, likewise; that thread may be left waiting for a lock
    "fuse/notifications/looks.py": {"open", "os.open"},
    # in threads, whose requests are answered at once: see there
    "fuse/notifications/own_mount.py": {"os.open"},
    # /proc/self, /sys; the directory of the mountpoint
    "fuse/binding/read_ahead.py": {"open"},
    "fuse/upcalls/requesters.py": {"open"},  # /proc, in threads that nobody waits for
    "fuse/binding/supplement.py": {"open"},  # /proc/self
}
"""Of all but the command lines: these have paths on the command line, and touch a mountpoint before it is
one."""

OPENING = frozenset(
    {"open", "io.open"}
    | {f"os.{name}" for name in ("open", "stat", "lstat", "statvfs", "listdir", "scandir", "readlink")}
    | {f"os.path.{name}" for name in ("realpath", "exists", "isdir", "isfile", "islink", "getsize", "samefile")}
)

OPENING_METHODS = frozenset({
    "read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "exists", "is_dir", "is_file", "resolve",
})  # fmt: skip
"""Of pathlib, whatever they are called on."""


def name_of(path: Path) -> str:
    return str(path.relative_to(CLIENT))


def docstrings_of(tree: ast.Module) -> set[ast.Constant]:
    found = set()
    for node in ast.walk(tree):
        for field in ("body", "orelse"):
            for statement in getattr(node, field, []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    found.add(statement.value)
    return found


def texts_of(tree: ast.Module) -> Iterator[str]:
    """The literals; in one with expressions in it each of these is ``{}``."""
    skipped = docstrings_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {part for part in node.values if isinstance(part, ast.Constant)}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in skipped:
            yield node.value.decode(errors="replace") if isinstance(node.value, bytes) else str(node.value)


def c_texts_of(source: str) -> list[str]:
    without_comments = re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.DOTALL)
    return re.findall(r'"((?:[^"\\]|\\.)*)"', without_comments)


def proc_names_in(path: Path) -> set[str]:
    source = path.read_text()
    texts = c_texts_of(source) if path.suffix == ".c" else texts_of(ast.parse(source))
    return {text for text in texts if "/proc" in text}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def opening_calls_in(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in OPENING:
                found.add(name)
            elif isinstance(node.func, ast.Attribute) and node.func.attr in OPENING_METHODS:
                found.add(node.func.attr)
    return found


SOURCES = sorted(path for path in CLIENT.rglob("*") if path.suffix in (".py", ".c"))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_of_proc_only_that_is_looked_at_which_waits_for_no_program(path: Path) -> None:
    assert proc_names_in(path) == PROC.get(name_of(path), set())


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".py" and path.parent.name != "cli"], ids=name_of
)
def test_paths_are_opened_only_where_the_event_loop_does_not_wait_for_its_own_mount(path: Path) -> None:
    assert opening_calls_in(path) == PATHS.get(name_of(path), set())


def test_the_tables_name_files_that_are_there() -> None:
    assert PROC.keys() | PATHS.keys() <= set(map(name_of, SOURCES))


def test_a_new_look_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('"""/proc"""\ndef look(pid):\n    """/proc"""\n    return open(f"/proc/{pid}/environ")\n')
    assert proc_names_in(file) == {"/proc/{}/environ"}
    assert opening_calls_in(file) == {"open"}
    file.write_text('Path("/proc", pid, "stat").read_text(); os.stat(b"/proc/1")')
    assert proc_names_in(file) == {"/proc", "/proc/1"}
    assert opening_calls_in(file) == {"read_text", "os.stat"}
    file = tmp_path / "x.c"
    file.write_text('/* "/proc/a" */\nopen("/proc/self/\\"b"); // "/proc/c"\n')
    assert proc_names_in(file) == {'/proc/self/\\"b'}
