"""The floors of the building, read from the imports. Extend the tables; the tests follow.

A module imports from its own floor or from one below. Machines and the wire are pure: same events in, same
effects out, which no clock, file, socket or random number can be part of.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = (
    # bottom to top; the longest prefix that fits a module decides where it lives
    ("nfsfuse.protocol",),
    ("nfsfuse.rpc", "nfsfuse.machines", "nfsfuse_server.machines"),
    (
        "nfsfuse.ports",
        "nfsfuse_server.storage.interface", "nfsfuse_server.state.interface", "nfsfuse_server.watch.interface",
    ),
    (
        "nfsfuse.engine", "nfsfuse_server.service",
        "nfsfuse_server.state.records", "nfsfuse_server.state.journal",
        "nfsfuse_server.state.settle", "nfsfuse_server.state.recover",
    ),
    ("nfsfuse.fuse", "nfsfuse_server.storage", "nfsfuse_server.state", "nfsfuse_server.watch"),
    ("nfsfuse.cli", "nfsfuse_server.cli"),
)

PURE = (
    "nfsfuse.protocol",
    "nfsfuse.rpc.exchange",
    "nfsfuse.rpc.sequence",
    "nfsfuse.machines",
    "nfsfuse_server.machines",
)

PURE_IMPORTS = frozenset({
    # of the standard library, what a pure module may use; an addition has no state and no surroundings
    "__future__", "abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum",
    "errno", "functools", "hashlib", "heapq", "hmac", "itertools", "math", "operator", "stat", "string",
    "struct", "types", "typing", "zlib",
})  # fmt: skip

PURE_EXCEPTIONS = {
    # module: what it may import beyond that, and why
    "nfsfuse.protocol.codec": {"msgpack": "the one place that knows the encoding"},
    "nfsfuse.protocol.errors": {"os": "strerror, a table"},
    "nfsfuse.machines.session": {"os": "O_TRUNC, a constant"},
    "nfsfuse.machines.blocks": {"mmap": "memory, its own", "ctypes": "mprotect, for the guard"},
}

SERVER_MAY_IMPORT = ("nfsfuse.protocol", "nfsfuse.rpc")

WITHOUT_FUSE = ("nfsfuse.protocol.messages", "nfsfuse.protocol.codec", "nfsfuse.rpc.channel")

LINES_MAX = 400

TABLES = ("nfsfuse.protocol.messages",)
"""What is one long list, and may be longer."""

TEXT_FILES = frozenset({
    ".c", ".cfg", ".h", ".in", ".ini", ".json", ".md", ".py", ".pyi", ".pyx", ".rst", ".sh", ".toml", ".txt",
    ".yaml", ".yml",
})  # fmt: skip

NOT_OURS = re.compile(r"^(\..*|__pycache__|build|dist|venv|.*\.egg-info)$")

MACHINE_PATHS = ("work", "tmp/v", "tmp/bash_jobs")
"""Directories of machines on which this was written; nothing here may know them."""


# --- what is there ---


PACKAGES = {"nfsfuse": ROOT / "nfsfuse", "nfsfuse_server": ROOT / "server" / "nfsfuse_server"}
"""What is installed, and where it stands."""


def dotted(path: Path, above: Path) -> str:
    parts = path.relative_to(above).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path, top.parent): path for top in PACKAGES.values() for path in top.rglob("*.py")}
CODE = sorted(name for name, path in MODULES.items() if path.name != "__init__.py")


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(), str(MODULES[module]))


@cache
def imports_of(module: str) -> frozenset[str]:
    """Everything *module* imports, wherever in its text; of this repository the modules, not their names."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return frozenset(found)


def ours_in(module: str) -> Iterator[str]:
    return (name for name in sorted(imports_of(module)) if name.split(".")[0] in PACKAGES)


def floor_of(module: str) -> int | None:
    fits = [
        (len(prefix), number)
        for number, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if within(module, (prefix,))
    ]
    return max(fits)[1] if fits else None


def files() -> Iterator[Path]:
    def walk(folder: Path) -> Iterator[Path]:
        for entry in sorted(folder.iterdir()):
            if NOT_OURS.match(entry.name) or (entry / "pyvenv.cfg").exists():
                continue
            if entry.is_dir():
                yield from walk(entry)
            elif entry.suffix in TEXT_FILES or not entry.suffix:
                yield entry

    return walk(ROOT)


# --- floors ---


def test_the_walk_sees_the_repository() -> None:
    assert {"nfsfuse.protocol.messages", "nfsfuse.rpc.channel"} <= set(CODE)
    assert imports_of("nfsfuse.protocol.messages") >= {"typing", "nfsfuse.protocol.types"}
    assert Path(__file__) in set(files())


@pytest.mark.parametrize("module", CODE)
def test_a_module_imports_from_its_own_floor_or_below(module: str) -> None:
    floor = floor_of(module)
    assert floor is not None, f"{module} has no floor: give it one in FLOORS"
    for name in ours_in(module):
        below = floor_of(name)
        assert below is not None, f"{module} imports {name}, which has no floor"
        assert below <= floor, f"{module} (floor {floor}) imports {name} (floor {below})"


@pytest.mark.parametrize("module", [module for module in CODE if within(module, PURE)])
def test_the_wire_and_the_machines_are_pure(module: str) -> None:
    """Whatever they import is pure as well, or purity would be a matter of one import more."""
    allowed = PURE_IMPORTS | PURE_EXCEPTIONS.get(module, {}).keys()
    for name in imports_of(module):
        if name in MODULES:
            assert within(name, PURE), f"{module} imports {name}"
        else:
            assert name.split(".")[0] in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in CODE if within(module, PURE)])
def test_pure_modules_do_not_await(module: str) -> None:
    asynchronous = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(tree_of(module)) if isinstance(node, asynchronous)]


@pytest.mark.parametrize("module", PURE_EXCEPTIONS)
def test_an_exception_from_purity_is_still_needed(module: str) -> None:
    assert PURE_EXCEPTIONS[module].keys() <= imports_of(module)


@pytest.mark.parametrize("module", CODE)
def test_client_and_server_share_the_protocol_only(module: str) -> None:
    for name in ours_in(module):
        if within(module, ("nfsfuse",)):
            assert not within(name, ("nfsfuse_server",)), f"{module} imports {name}"
        elif within(name, ("nfsfuse",)):
            assert within(name, SERVER_MAY_IMPORT), f"{module} imports {name}"


def test_no_module_imports_itself_over_others() -> None:
    graph = {module: [name for name in ours_in(module) if name in CODE] for module in CODE}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the cycle


@pytest.mark.parametrize("module", WITHOUT_FUSE)
def test_the_shared_part_pulls_in_no_fuse(module: str) -> None:
    # pip's finder of an editable installation has the project's name in its own.
    program = (
        f"import sys, {module}; "
        "print(*sorted(n for n in sys.modules if 'fuse' in n and not n.startswith('__editable__')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.split()
    assert module in loaded
    assert [name for name in loaded if not within(name, SERVER_MAY_IMPORT)] == ["nfsfuse"]


# --- nobody is wired up from outside ---


HOOKS = re.compile(r"on_|_")
"""How an attribute begins that nobody sets from outside of its class: hooks, and what is private."""

COLLABORATORS = frozenset({"Callable", "Channel", "Notifier", "Nursery", "SessionOwner"})
"""Types of what an object works with: its constructor is told of it, or the call that needs it."""

WIRING = ("nfsfuse.engine.filesystem", "nfsfuse.fuse.binding.supplement", "nfsfuse.cli", "nfsfuse_server.cli")
"""Where everything is put together, and nothing is set afterwards."""

STATE = ("inode", "file")
"""What is not put together there, but worked on."""

FOREIGN = frozenset({"argtypes", "restype"})
"""How ctypes is told of a function: there is no other way."""

WIRED_LATER = {
    # module, what is assigned: why it is still there. To become empty.
    ("nfsfuse.cli.mount", "filesystem.files.access_times"): "an option, to be CacheOptions'",
    ("nfsfuse.cli.mount", "filesystem.acls.refused"): "an option, to be CacheOptions'",
    ("nfsfuse.cli.mount", "filesystem.files.write_directly"): "known when the kernel has answered INIT",
    ("nfsfuse.cli.mount", "kernel.notifier"): "there is one when it is mounted, and the engine is made before",
    ("nfsfuse.engine.filesystem", "self.write_back.give_up"): "WriteBack and PageProtocol know each other",
    ("nfsfuse.engine.filesystem", "self.write_back.drop_untaken"): "WriteBack and PageProtocol know each other",
    ("nfsfuse.engine.filesystem", "self.reader.nursery"): "there is one when it runs",
    ("nfsfuse.engine.filesystem", "self.changes.nursery"): "there is one when it runs",
    ("nfsfuse.engine.filesystem", "self.files.access_times"): "the server's Welcome has a say in it",
    ("nfsfuse.engine.name_drops", "inodes.stand_in_wanted"): "InodeTable is made before NameDrops",
    ("nfsfuse.engine.recalls", "self._name_drops.nursery"): "there is one when it runs",
    ("nfsfuse.fuse.binding.supplement", "pyfuse3.trio"): "pyfuse3 is not ours, and is to read by our loop",
    ("nfsfuse.fuse.binding.supplement", "self._dispatcher.nursery"): "there is one when it is served",
    ("nfsfuse.fuse.binding.supplement", "self._replies.device"): "the device is open while it is mounted",
    ("nfsfuse.fuse.binding.supplement", "replies.device"): "the device is open while it is mounted",
    ("nfsfuse.fuse.binding.supplement", "dispatcher.short_setxattr"): "known when the kernel has answered INIT",
    ("nfsfuse_server.service.service", "session.channel"): "Requests and Channel know each other",
    ("nfsfuse_server.service.service", "session.nursery"): "there is one when it is served",
}


@cache
def own_attributes(module: str) -> frozenset[str]:
    """The attributes of the classes that are defined in *module*."""
    found = set()
    for each in ast.walk(tree_of(module)):
        if not isinstance(each, ast.ClassDef):
            continue
        fields = (node.target for node in each.body if isinstance(node, ast.AnnAssign))
        found |= {field.id for field in fields if isinstance(field, ast.Name)}
        found |= {n.attr for n in ast.walk(each) if isinstance(n, ast.Attribute) and is_set(n) and is_own(n)}
    return frozenset(found)


@cache
def collaborators() -> frozenset[str]:
    """The names of attributes that are declared to be what an object works with."""
    found = set()
    for module in CODE:
        for node in ast.walk(tree_of(module)):
            if not isinstance(node, ast.AnnAssign) or isinstance(node.target, ast.Subscript):
                continue
            if COLLABORATORS & set(re.findall(r"\w+", ast.unparse(node.annotation))):
                target = node.target
                found.add(target.attr if isinstance(target, ast.Attribute) else target.id)
    return frozenset(found)


def is_set(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def wired_from_outside(module: str) -> Iterator[str]:
    """What *module* sets of an object of another module's, that is a hook, private, or what it works with."""
    for node in ast.walk(tree_of(module)):
        if not isinstance(node, ast.Attribute) or not is_set(node) or is_own(node) or node.attr in FOREIGN:
            continue
        text = ast.unparse(node)
        if node.attr in own_attributes(module) and text.count(".") == 1:
            continue
        put_together = within(module, WIRING) and text.split(".")[0] not in STATE
        if HOOKS.match(node.attr) or node.attr in collaborators() or put_together:
            yield text


def test_what_is_wired_from_outside_would_be_found() -> None:
    assert "_starts" in own_attributes("nfsfuse.protocol.intervals")
    assert {"give_up", "nursery"} <= collaborators()
    assert "self.reader.nursery" in set(wired_from_outside("nfsfuse.engine.filesystem"))


@pytest.mark.parametrize("module", CODE)
def test_nobody_sets_the_hooks_and_collaborators_of_another_object(module: str) -> None:
    """Who needs to be told of something says so to a constructor, or to the call that begins it: else there
    is a time in which nobody is told, and no place that says who is."""
    allowed = {text for where, text in WIRED_LATER if where == module}
    assert set(wired_from_outside(module)) - allowed == set()


@pytest.mark.parametrize(("module", "text"), WIRED_LATER)
def test_what_may_be_wired_later_still_is(module: str, text: str) -> None:
    assert text in set(wired_from_outside(module)), "take it out of WIRED_LATER"


# --- style that can be counted ---


def test_package_init_files_are_empty() -> None:
    for folder in (*PACKAGES.values(), ROOT / "tests"):
        for path in folder.rglob("__init__.py"):
            assert path.read_bytes() == b"", path


def test_every_folder_with_modules_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").exists(), path.parent


@pytest.mark.parametrize("module", CODE)
def test_no_file_is_too_long(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LINES_MAX or module in TABLES


@pytest.mark.parametrize("module", CODE)
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = tree_of(module)
    assert ast.get_docstring(tree), f"{module} itself"
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, definitions) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}:{node.lineno} {node.name}"


FORBIDDEN_PATH = re.compile(rf"(?<![\w./-])/(?:{'|'.join(map(re.escape, MACHINE_PATHS))})(?![\w.-])")


@pytest.mark.parametrize("path", MACHINE_PATHS)
def test_a_machines_path_would_be_found(path: str) -> None:
    for line in (f"/{path}", f"cd /{path}/x", f'"/{path}"'):
        assert FORBIDDEN_PATH.search(line)
    for line in (f"net/{path}", f"/{path}shop", f"../{path}/x"):
        assert not FORBIDDEN_PATH.search(line)


def test_no_file_names_a_machines_path() -> None:
    for path in files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            assert not FORBIDDEN_PATH.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
