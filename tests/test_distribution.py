"""What is installed: two packages, and nothing that only tests use."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from setuptools import find_namespace_packages

ROOT = Path(__file__).resolve().parent.parent


def installed_packages() -> dict[str, Path]:
    """The packages that the build finds by the tables of pyproject.toml, and where each stands."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    return {
        name: ROOT / where / name.replace(".", "/")
        for where in found["where"]
        for name in find_namespace_packages(str(ROOT / where), include=found["include"])
    }


def test_two_packages_are_installed():
    assert {name.split(".")[0] for name in installed_packages()} == {"nfsfuse", "nfsfuse_server"}


def test_every_module_of_both_is_installed():
    tops = (ROOT / "nfsfuse", ROOT / "server" / "nfsfuse_server")
    folders = {path.parent for top in tops for path in top.rglob("*.py")}
    assert set(installed_packages().values()) >= folders


def test_nothing_installed_is_for_tests():
    """Neither by its name, nor by what it imports."""
    for folder in installed_packages().values():
        assert "tests" not in folder.relative_to(ROOT).parts
        for path in folder.glob("*.py"):
            assert not path.name.startswith(("test_", "conftest", "fake_", "memory_")), path
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                outside = {name.split(".")[0] for name in names} & {"tests", "pytest", "hypothesis"}
                assert not outside, f"{path} imports {outside}"
