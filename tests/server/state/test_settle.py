"""Every operation of the journal, interrupted by the server's death before it, after it, and after its record.

A twin does the same without dying. What the client is told in the end, and what the tree is then, must be as
with the twin: once, not twice, and not less.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    AttributeChanges,
    Attributes,
    Credentials,
    InodeHandle,
    Node,
    RequestId,
)
from nfsfuse_server.state.records import Outcome, lasting
from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local import LocalStorage
from nfsfuse_server.storage.local_names import LocalNames
from tests.helpers.dying_server import CLIENT, Died, DyingServer, errno_of
from tests.helpers.memory_storage import MemoryStorage

ME = Credentials(1000, 100)
SIZE = 20000


@dataclass(frozen=True)
class Tree:
    """The storage as every test begins with it."""

    storage: Storage
    root: InodeHandle
    file: InodeHandle
    other: InodeHandle
    directory: InodeHandle


def planted(storage: Storage) -> Tree:
    root = storage.root().handle
    file = storage.create(root, b"file", 0o644, ME)
    storage.write(file.handle, 0, bytes(range(250)) * (SIZE // 250))
    storage.setxattr(file.handle, b"user.there", b"old", 0)
    other = storage.create(root, b"other", 0o600, ME)
    storage.write(other.handle, 0, b"other" * 3000)
    directory = storage.mkdir(root, b"directory", 0o755, ME)
    storage.mkdir(root, b"empty", 0o755, ME)
    storage.link(other.handle, directory.handle, b"another")
    return Tree(storage, root, file.handle, other.handle, directory.handle)


@contextmanager
def memory(_: Path) -> Iterator[Storage]:
    yield MemoryStorage()


@contextmanager
def local(path: Path) -> Iterator[Storage]:
    if os.geteuid() != 0:
        pytest.skip("persistent handles need root")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    storage = LocalStorage(path, bytes(32))
    yield storage
    storage.close()


Asked = Callable[[Tree], Message | tuple[Message, bytes]]

OPERATIONS: dict[str, Asked] = {
    "create": lambda t: m.Create(t.root, b"new", 0o640, os.O_RDWR, ME),
    "create, exclusive": lambda t: m.Create(t.root, b"new", 0o4755, os.O_RDWR | os.O_EXCL, ME),
    "create over a file, truncating": lambda t: m.Create(t.root, b"file", 0, os.O_RDWR | os.O_TRUNC, ME),
    "mkdir": lambda t: m.MkDir(t.directory, b"new", 0o1777, ME),
    "mknod": lambda t: m.MkNod(t.root, b"fifo", stat.S_IFIFO | 0o600, 0, ME),
    "symlink": lambda t: m.SymLink(t.root, b"link", b"where", ME),
    "link": lambda t: m.Link(t.file, t.directory, b"new"),
    "unlink": lambda t: m.Unlink(t.root, b"file"),
    "unlink one of two": lambda t: m.Unlink(t.root, b"other"),
    "rmdir": lambda t: m.RmDir(t.root, b"empty"),
    "rename": lambda t: m.Rename(t.root, b"file", t.directory, b"new", 0),
    "rename, not replacing": lambda t: m.Rename(t.root, b"file", t.root, b"new", RENAME_NOREPLACE),
    "rename over another": lambda t: m.Rename(t.root, b"file", t.directory, b"another", 0),
    "rename over the last": lambda t: m.Rename(t.root, b"other", t.root, b"file", 0),
    "rename to another link": lambda t: m.Rename(t.root, b"other", t.directory, b"another", 0),
    "rename of a directory": lambda t: m.Rename(t.root, b"directory", t.root, b"moved", 0),
    "rename, leaving a whiteout": lambda t: m.Rename(t.root, b"file", t.directory, b"new", RENAME_WHITEOUT),
    "rename over another, leaving one": lambda t: m.Rename(
        t.root, b"file", t.directory, b"another", RENAME_WHITEOUT
    ),
    "exchange": lambda t: m.Rename(t.root, b"file", t.directory, b"another", RENAME_EXCHANGE),
    "chmod": lambda t: m.SetAttr(t.file, AttributeChanges(mode=0o600)),
    "chown": lambda t: m.SetAttr(t.file, AttributeChanges(uid=7, gid=8, mode=0o4711)),
    "truncate": lambda t: m.SetAttr(t.file, AttributeChanges(size=100)),
    "utimens": lambda t: m.SetAttr(t.file, AttributeChanges(atime_ns=1, mtime_ns=2)),
    "open, truncating": lambda t: m.Open(t.file, os.O_WRONLY | os.O_TRUNC, True),
    "flags": lambda t: m.SetInodeFlags(t.file, False, (0x80040,)),  # ext4's file has the first, and not dumped
    "setxattr": lambda t: (m.SetXattr(t.file, b"user.new", 0), b"value"),
    "setxattr, creating": lambda t: (m.SetXattr(t.file, b"user.new", os.XATTR_CREATE), b"value"),
    "setxattr, replacing": lambda t: (m.SetXattr(t.file, b"user.there", os.XATTR_REPLACE), b"new"),
    "removexattr": lambda t: m.RemoveXattr(t.file, b"user.there"),
    "allocate": lambda t: m.Fallocate(t.file, 0, 0, 2 * SIZE),
    "punch a hole": lambda t: m.Fallocate(t.file, 3, 4096, 4096),
    "copy": lambda t: m.CopyRange(t.other, 0, t.file, 1000, 5000),
}

REFUSED: dict[str, tuple[Asked, str]] = {
    "mkdir": (lambda t: m.MkDir(t.root, b"file", 0o755, ME), "EEXIST"),
    "create": (lambda t: m.Create(t.root, b"file", 0o600, os.O_EXCL, ME), "EEXIST"),
    "link": (lambda t: m.Link(t.file, t.root, b"other"), "EEXIST"),
    "link to a directory": (lambda t: m.Link(t.directory, t.root, b"new"), "EPERM"),
    "unlink": (lambda t: m.Unlink(t.root, b"none"), "ENOENT"),
    "rmdir": (lambda t: m.RmDir(t.root, b"directory"), "ENOTEMPTY"),
    "rename": (lambda t: m.Rename(t.root, b"none", t.root, b"new", 0), "ENOENT"),
    "rename, not replacing": (lambda t: m.Rename(t.root, b"file", t.root, b"other", 1), "EEXIST"),
    "setattr": (lambda t: m.SetAttr(t.directory, AttributeChanges(size=1)), "EISDIR"),
    "setxattr, creating": (lambda t: (m.SetXattr(t.file, b"user.there", os.XATTR_CREATE), b"x"), "EEXIST"),
    "setxattr, replacing": (lambda t: (m.SetXattr(t.file, b"user.no", os.XATTR_REPLACE), b"x"), "ENODATA"),
    "removexattr": (lambda t: m.RemoveXattr(t.file, b"user.no"), "ENODATA"),
    "fallocate": (lambda t: m.Fallocate(t.file, 0, -1, 1), "EINVAL"),
    "copy": (lambda t: m.CopyRange(t.directory, 0, t.file, 0, 1), "EISDIR"),
}


def asked(tree: Tree, operation: Asked) -> tuple[Message, bytes]:
    message = operation(tree)
    return message if isinstance(message, tuple) else (message, b"")


def without_times(attributes: Attributes) -> tuple[int, ...]:
    a = attributes
    return a.mode, a.nlink, a.uid, a.gid, a.rdev, 0 if stat.S_ISDIR(a.mode) else a.size


def shown(storage: Storage, handle: InodeHandle | None = None) -> dict[bytes, Any]:
    """Everything below a directory, without times and inode numbers."""
    tree: dict[bytes, Any] = {}
    entries, end = storage.readdir(handle or storage.root().handle, 0, 1000)
    assert end
    for entry in entries:
        assert entry.handle is not None
        attributes = storage.getattr(entry.handle)
        inner: Any = None
        mode = attributes.mode
        if stat.S_ISDIR(mode):
            inner = shown(storage, entry.handle)
        elif stat.S_ISREG(mode):
            inner = storage.read(entry.handle, 0, 1 << 20)
        elif stat.S_ISLNK(mode):
            inner = storage.readlink(entry.handle)
        xattrs = []
        if stat.S_ISREG(mode):
            names = storage.listxattr(entry.handle)
            xattrs = [(name, storage.getxattr(entry.handle, name)) for name in names]
        tree[entry.name] = (without_times(attributes), xattrs, inner)
    return tree


def told(outcome: Outcome | None) -> Any:
    """An outcome, without times and inode numbers. Which inodes an unlink or rename has affected is not
    compared: of one that is gone a look tells nothing."""

    def node(of: Node | None) -> Any:
        return None if of is None else without_times(of.attributes)

    match outcome:
        case FsError():
            return errno_of(outcome)
        case m.Done():
            return "done"
        case m.Entry(node=found):
            return "entry", node(found)
        case m.Opened(node=found):
            return "opened", node(found)
        case m.Stat(attributes=attributes):
            return "stat", without_times(attributes)
        case m.Position(offset=offset):
            return "position", offset
    raise AssertionError(outcome)


Place = Callable[[Path], Any]


@pytest.fixture(params=[memory, local], ids=["memory", "local"])
def place(request: pytest.FixtureRequest) -> Place:
    made: Place = request.param
    return made


@pytest.fixture
def twin(place: Place, tmp_path: Path) -> Callable[[Asked], tuple[Any, Any, Any]]:
    """What an operation does when nothing goes wrong: the tree before it, the reply, the tree after it."""

    def run(operation: Asked) -> tuple[Any, Any, Any]:
        with place(tmp_path / "twin") as storage:
            tree = planted(storage)
            before = shown(storage)
            outcome = DyingServer(storage).request(1, *asked(tree, operation))
            return before, told(outcome), shown(storage)

    return run


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_done_once_wherever_the_server_dies(
    name: str, when: str, place: Place, twin: Any, tmp_path: Path
) -> None:
    operation = OPERATIONS[name]
    _, reply, after = twin(operation)
    with place(tmp_path / "export") as storage:
        tree = planted(storage)
        message, payload = asked(tree, operation)
        first = DyingServer(storage, when=when)
        with pytest.raises(Died):
            first.request(1, message, payload)
        # One that dies again while it settles, and one that does not: what they find is the same.
        DyingServer(storage, first.left())
        answers = when == "after" and name != "rename to another link"  # which changes nothing
        second = DyingServer(storage, first.left(), when="before" if answers else "")
        assert told(second.request(1, message, payload)) == reply
        assert shown(storage) == after
        # And once more, from what the second has left.
        third = DyingServer(storage, second.left())
        assert told(third.request(1, message, payload)) == reply
        assert shown(storage) == after


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_an_operation_that_was_done_is_answered_and_not_repeated(
    operation: Asked, place: Place, tmp_path: Path
) -> None:
    with place(tmp_path / "export") as storage:
        tree = planted(storage)
        message, payload = asked(tree, operation)
        first = DyingServer(storage)
        reply = first.request(1, message, payload)
        assert not isinstance(reply, FsError), reply
        then = shown(storage)
        second = DyingServer(storage, first.left(), when="before")  # it would die of doing anything
        assert second.request(1, message, payload) == lasting(reply)
        assert shown(storage) == then


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("operation", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_refused_again(
    operation: Asked, why: str, when: str, place: Place, twin: Any, tmp_path: Path
) -> None:
    before, reply, after = twin(operation)
    assert reply == why
    assert after == before
    with place(tmp_path / "export") as storage:
        tree = planted(storage)
        first = DyingServer(storage, when=when)
        with suppress(Died):  # some are refused before anything is intended
            first.request(1, *asked(tree, operation))
        second = DyingServer(storage, first.left())
        assert told(second.request(1, *asked(tree, operation))) == why
        assert shown(storage) == before


@pytest.mark.parametrize("kind", ["create", "mkdir", "mknod", "symlink"])
def test_an_inode_that_was_made_but_has_no_owner_yet_gets_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local directory's creations are two steps: the name, then owner and special mode bits."""
    operation = OPERATIONS["create, exclusive" if kind == "create" else kind]
    with local(tmp_path / "export") as storage:
        tree = planted(storage)
        message, payload = asked(tree, operation)
        first = DyingServer(storage)

        def dies(*args: object, **kwargs: object) -> None:
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(LocalNames, "_finish", dies)
            with pytest.raises(Died):
                first.request(1, message, payload)
        second = DyingServer(storage, first.left(), when="before")
        outcome = second.request(1, message, payload)
        assert isinstance(outcome, m.Opened | m.Entry), outcome
        assert outcome.node is not None
        has = outcome.node.attributes
        assert (has.uid, has.gid) == (ME.uid, ME.gid)
        wanted = {"create": 0o4755, "mkdir": 0o1777, "mknod": 0o600, "symlink": 0o777}[kind]
        assert stat.S_IMODE(has.mode) == wanted


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("mode", "moved"), [(0x08, -4096), (0x20, 4096)], ids=["collapse", "insert"])
def test_data_are_moved_once(mode: int, moved: int, when: str, tmp_path: Path) -> None:
    with local(tmp_path / "export") as storage:
        tree = planted(storage)
        message = m.Fallocate(tree.file, mode, 4096, 4096)
        first = DyingServer(storage, when=when)
        with suppress(Died):
            first.request(1, message)
        second = DyingServer(storage, first.left())
        outcome = second.request(1, message)
        if isinstance(outcome, FsError) and outcome.errno == errno.EOPNOTSUPP:
            pytest.skip("this filesystem does not move data")
        assert isinstance(outcome, m.Stat), outcome
        assert outcome.attributes.size == SIZE + moved
        assert storage.getattr(tree.file).size == SIZE + moved


def test_what_cannot_be_told_is_taken_for_not_done(caplog: pytest.LogCaptureFixture) -> None:
    """After a power failure names may lead anywhere."""
    storage = MemoryStorage()
    tree = planted(storage)
    first = DyingServer(storage, when="before")
    with pytest.raises(Died):
        first.request(1, m.Rename(tree.root, b"file", tree.root, b"new", 0))
    storage.unlink(tree.root, b"file")
    second = DyingServer(storage, first.left())
    assert second.journal.outcome(CLIENT.id, RequestId(1)) is None
    assert "cannot be told" in caplog.text
    assert errno_of(second.request(1, m.Rename(tree.root, b"file", tree.root, b"new", 0))) == "ENOENT"


CHANGES_NAMES = [name for name, of in OPERATIONS.items() if name.split(",")[0].split()[0] in (
    "create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "exchange",
) and "truncating" not in name and name != "rename to another link"]  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_after_a_power_failure_nothing_is_done_again(name: str, tmp_path: Path) -> None:
    """The journal may be older than what has been fsynced."""
    storage = MemoryStorage()
    tree = planted(storage)
    message, payload = asked(tree, OPERATIONS[name])
    first = DyingServer(storage, when="after")
    with pytest.raises(Died):
        first.request(1, message, payload)
    storage.setattr(tree.other, AttributeChanges(mode=0o640))
    then = shown(storage)
    second = DyingServer(storage, first.left(), rebooted=True)
    assert shown(storage) == then
    outcome = second.journal.outcome(CLIENT.id, RequestId(1))
    assert (outcome is not None) == (name in CHANGES_NAMES)
    assert not isinstance(outcome, FsError)


def test_after_a_power_failure_what_was_answered_is_still_known() -> None:
    storage = MemoryStorage()
    tree = planted(storage)
    first = DyingServer(storage)
    reply = first.request(1, m.SetAttr(tree.file, AttributeChanges(size=5)))
    assert isinstance(reply, m.Stat)
    second = DyingServer(storage, first.left(), when="before", rebooted=True)
    assert second.request(1, m.SetAttr(tree.file, AttributeChanges(size=5))) == lasting(reply)
