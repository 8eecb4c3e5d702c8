"""No storage call is made where others are served, but by a step: what may wait for the disk then has a thread.

(That those which block by nature are slow steps is tried at run time: `StepsOnly`.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfsfuse_server.storage.interface import AT_ONCE, BLOCKING, Storage

SERVICE = Path(__file__).resolve().parents[3] / "server" / "nfsfuse_server" / "service"
METHODS = {name for name in vars(Storage) if not name.startswith("_")}

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def direct_calls(tree: ast.AST) -> Iterator[str]:
    """Calls of a storage's methods (``x.storage.method()``) that are made where they stand: not in a lambda,
    which a step has for later."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Lambda):
                continue
            match child:
                case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="storage" | "_storage"), attr=name)):
                    if name in METHODS - AT_ONCE:
                        yield f"line {child.lineno}: {name}"
            yield from walk(child)

    yield from walk(tree)


@pytest.mark.parametrize("path", sorted(SERVICE.glob("*.py")), ids=lambda path: path.name)
def test_storage_calls_are_made_by_steps(path: Path) -> None:
    assert list(direct_calls(ast.parse(path.read_text()))) == []


def test_a_direct_call_would_be_found() -> None:
    assert list(direct_calls(ast.parse("def f(call):\n call.storage.pin(h)\n"))) == ["line 2: pin"]
    assert list(direct_calls(ast.parse("async def f(self):\n self._storage.unpin(h)\n"))) == ["line 2: unpin"]
    assert not list(direct_calls(ast.parse("def f(call):\n yield Quick(lambda: call.storage.pin(h))\n")))


def test_every_method_is_known_to_be_of_one_kind() -> None:
    assert BLOCKING <= METHODS
    assert AT_ONCE <= METHODS
    assert not BLOCKING & AT_ONCE
