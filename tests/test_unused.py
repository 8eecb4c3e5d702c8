"""Everything that the product defines is used by the product: what only tests call is weight without use.

Names are compared, not what they mean: a definition counts as used if its name is read anywhere in the product,
or stands in a script or in pyproject.toml. So what this finds is dead, and what it does not find may be.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EXCEPTIONS = {
    # name: why it is there though the product never asks for it
    "inval_entry": "what `expire_entry` and `inc_epoch` are compared with on each kernel (test_notify.py)",
    "locks_of": "what a machine holds, for those who compare it with a model",
    "recalls_of": "what a machine waits for, for those who compare it with a model",
    "tokens_of": "what a machine holds, for those who compare it with a model",
}


def unused(product: Iterable[str], elsewhere: str) -> set[str]:
    """Functions, methods and classes without an underscore that no text of *product* reads by name, nor
    *elsewhere* names."""
    defined: set[str] = set()
    read: set[str] = set(re.findall(r"\w+", elsewhere))
    for text in product:
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    if not name.startswith("_"):
                        defined.add(name)
                case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                    read.add(name)
    return defined - read


def test_everything_is_used_by_the_product():
    tops = (ROOT / "nfsfuse", ROOT / "server" / "nfsfuse_server")
    product = [path.read_text() for top in tops for path in sorted(top.rglob("*.py"))]
    scripts = [path.read_text() for path in sorted((ROOT / "scripts").rglob("*")) if path.is_file()]
    found = unused(product, "\n".join([*scripts, (ROOT / "pyproject.toml").read_text()]))
    assert found == EXCEPTIONS.keys(), "neither what nobody uses, nor an exception that is not needed any more"


def test_what_is_not_used_would_be_found():
    used = "def used(): pass\nclass Used: pass\nused()\nx: Used\nx.method()\n"
    dead = "class Dead:\n def method(self): pass\n async def other(self): pass\n def _private(self): pass\n"
    assert unused([used, dead], "") == {"Dead", "other"}
    assert unused([used, dead], "Dead().other") == set()
