"""Records are frozen in the tests, and otherwise the same as where they are not."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

from nfsfuse.protocol.types import Credentials

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_SECONDS = 60
CREDENTIALS = Credentials(uid=1, gid=2, umask=0o22)


def modules_with_records() -> list[str]:
    found = []
    for top in (ROOT, ROOT / "server"):
        for path in sorted(top.glob("nfsfuse*/**/*.py")):
            if "@record(" in path.read_text():
                found.append(".".join(path.relative_to(top).with_suffix("").parts))
    return found


def records_of(module: str) -> list[str]:
    path = import_module(module).__file__
    assert path is not None
    return [
        node.name
        for node in ast.parse(Path(path).read_text()).body
        if isinstance(node, ast.ClassDef) and any("record(" in ast.unparse(d) for d in node.decorator_list)
    ]


@pytest.mark.parametrize("module", modules_with_records())
def test_every_record_is_frozen_here(module: str) -> None:
    names = records_of(module)
    assert names, f"{module} has records, but none at its top level"
    for name in names:
        of = getattr(import_module(module), name)
        assert is_dataclass(of)
        assert vars(of)["__dataclass_params__"].frozen, f"{name} was made before the tests began"


def test_an_assignment_fails() -> None:
    for field in fields(CREDENTIALS):
        with pytest.raises(FrozenInstanceError):
            setattr(CREDENTIALS, field.name, 5)


def test_a_program_leaves_the_check_out_and_nothing_else() -> None:
    program = (
        "from nfsfuse.protocol.types import Credentials\n"
        f"one, other = {CREDENTIALS!r}, {CREDENTIALS!r}\n"
        "assert one == other and len({one, other}) == 1\n"
        "print(hash(one))\n"
        "one.uid = 5\n"
        "assert one != other\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, timeout=TIMEOUT_SECONDS, check=True, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert int(done.stdout) == hash(CREDENTIALS)
