"""A failure that is kept keeps all that was in use where it was raised: its traceback has the calls that it
came through, and they have their local variables. Descriptors were kept so, and with them the room on the disk
of files that were removed; and the data of writes. If one of those variables is the failure itself, that is a
cycle, which nothing but the collector of garbage ends.

So in the daemons no failure is put where it outlives the ``except`` that caught it, but as `FsError.alone`, and
what is raised is no variable of the call that raises it. Where neither will do, ``finally`` lets go of the
variable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("nfsfuse", "server") for path in (ROOT / package).rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def own(node: ast.AST) -> Iterator[ast.AST]:
    """What is in *node*, but not in functions inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (Function, ast.Lambda)):
            yield from own(child)


def let_go(function: Function) -> set[str]:
    """Variables that a ``finally`` deletes or sets to None."""
    found = set()
    for node in own(function):
        if isinstance(node, ast.Try):
            for statement in node.finalbody:
                if isinstance(statement, ast.Delete) or (
                    isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
                ):
                    found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return found


def kept(handler: ast.ExceptHandler) -> Iterator[tuple[int, str]]:
    """Where *handler* puts what it has caught under another name."""
    for node in own(handler):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            values = [node.value, *(node.value.values if isinstance(node.value, ast.BoolOp) else ())]
            if any(isinstance(value, ast.Name) and value.id == handler.name for value in values):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                yield node.lineno, ast.unparse(target)


def faults(tree: ast.AST) -> Iterator[str]:
    for function in ast.walk(tree):
        if not isinstance(function, Function):
            continue
        gone, caught = let_go(function), set()
        for node in own(function):
            if isinstance(node, ast.ExceptHandler) and node.name is not None:
                caught.add(node.name)
                for line, name in kept(node):
                    if name not in gone:
                        yield f"line {line}: {node.name} is kept as {name}"
        for node in own(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
                name = node.exc.id
                if name[0].islower() and name not in gone | caught:
                    yield f"line {node.lineno}: {name} is raised, and is a variable"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_failure_is_kept(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "body",
    [
        "try:\n  work()\n except OSError as exc:\n  self.failure = exc",
        "failure = None\n try:\n  work()\n except OSError as exc:\n  failure = failure or exc",
        "failure = owed()\n raise failure",
    ],
)
def test_one_would_be_found(body: str) -> None:
    assert list(faults(ast.parse(f"def call(self):\n {body}")))


@pytest.mark.parametrize(
    "body",
    [
        "try:\n  work()\n except OSError as exc:\n  self.failure = exc.alone()",
        "try:\n  work()\n except OSError as exc:\n  log(exc)\n  raise",
        "failure = None\n try:\n  raise failure\n finally:\n  del failure",
        "raise owed().alone()",
    ],
)
def test_what_lets_go_is_none(body: str) -> None:
    assert not list(faults(ast.parse(f"def call(self):\n {body}")))
