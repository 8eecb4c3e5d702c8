"""Watchers of real directories: what another process changes is told, what the storage does is not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
    AttributeChanges,
    Credentials,
    InodeHandle,
)
from nfsfuse_server.storage.local import LocalStorage
from nfsfuse_server.watch import choose, fanotify
from nfsfuse_server.watch.choose import Watch, open_export
from nfsfuse_server.watch.fanotify import FanotifyWatcher
from nfsfuse_server.watch.inotify import InotifyWatcher
from nfsfuse_server.watch.interface import (
    AttributesChanged,
    Change,
    ContentChanged,
    NameChanged,
    Overflow,
    Watcher,
    WatchError,
)
from nfsfuse_server.watch.queue import EventQueue

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ME = Credentials(0, 0)
SECRET = bytes(range(32))

TOLD_SECONDS_MAX = 20.0
"""Until a change is told; far longer than it takes, for a machine that is busy."""

EVENTS_MAX = 16384
"""fs.fanotify.max_queued_events and fs.inotify.max_queued_events by default."""


@dataclass
class Watched:
    """An export, its storage and what watches it."""

    path: Path
    storage: LocalStorage
    watcher: Watcher
    marks: int = 0

    @property
    def root(self) -> InodeHandle:
        return self.storage.root().handle

    def handle(self, name: str) -> InodeHandle:
        """Of what is called so; a path below the export."""
        found = self.root
        for part in name.split("/"):
            found = self.storage.lookup(found, part.encode()).handle
        return found

    def elsewhere(self, commands: str) -> None:
        """Another process does this in the export."""
        subprocess.run(["sh", "-ec", commands], cwd=self.path, check=True, timeout=60)

    async def told(self) -> list[Change]:
        """Everything up to now: a name that another process makes now is told last."""
        self.marks += 1
        mark = f"mark-{self.marks}"
        self.elsewhere(f"mkdir {mark}")
        last = NameChanged(self.root, mark.encode())
        found: list[Change] = []
        with trio.fail_after(TOLD_SECONDS_MAX):
            while last not in found:
                found += await self.watcher.changes()
        return found[: found.index(last)]


def about(told: list[Change], *handles: InodeHandle) -> list[Change]:
    """Those of the changes that concern *handles*: fanotify tells of the whole filesystem, on which others
    are at work."""
    return [
        change
        for change in told
        if isinstance(change, Overflow)
        or (change.directory if isinstance(change, NameChanged) else change.handle) in handles
    ]


@pytest.fixture(params=["fanotify disk", "fanotify tmpfs", "inotify disk", "inotify tmpfs", "volatile"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    base = Path("/dev/shm") if "tmpfs" in request.param else tmp_path
    path = Path(tempfile.mkdtemp(dir=base, prefix="watch-test-"))
    (path / "old").mkdir()
    (path / "old" / "file").write_text("content")
    kind = Watch.FANOTIFY if "fanotify" in request.param else Watch.INOTIFY
    storage, watcher = open_export(path, None if request.param == "volatile" else SECRET, kind)
    assert watcher is not None
    yield Watched(path, storage, watcher)
    watcher.close()
    storage._cache.check()
    storage.close()
    shutil.rmtree(path)


async def test_names_that_another_process_changes_are_told(watched: Watched) -> None:
    root, old = watched.root, watched.handle("old")
    file = watched.handle("old/file")
    watched.elsewhere("touch new")
    assert NameChanged(root, b"new") in await watched.told()
    watched.elsewhere("mv old/file moved")
    told = await watched.told()
    assert {NameChanged(old, b"file"), NameChanged(root, b"moved")} <= set(told)
    assert {AttributesChanged(file), ContentChanged(file)} & set(told)
    watched.elsewhere("mv new moved; rm moved; rmdir old")
    told = await watched.told()
    assert {NameChanged(root, name) for name in (b"new", b"moved", b"old")} <= set(told)


async def test_contents_that_another_process_changes_are_told(watched: Watched) -> None:
    file = watched.handle("old/file")
    for command in ("echo more >> old/file", "truncate -s 100 old/file", "fallocate -l 5000 old/file"):
        watched.elsewhere(command)
        assert ContentChanged(file) in await watched.told(), command


async def test_attributes_that_another_process_changes_are_told(watched: Watched) -> None:
    file, old = watched.handle("old/file"), watched.handle("old")
    for command, handle in (
        ("chmod 600 old/file", file),
        ("touch -d @1 old/file", file),
        ("chown 1000 old/file", file),
        ("chmod 700 old", old),
        ("chmod 755 .", watched.root),
    ):
        watched.elsewhere(command)
        assert AttributesChanged(handle) in await watched.told(), command
    watched.elsewhere("ln old/file link")
    assert {AttributesChanged(file), ContentChanged(file)} & set(await watched.told())


async def test_the_link_count_that_another_process_lowers_is_told_by_fanotify(watched: Watched) -> None:
    if isinstance(watched.watcher, InotifyWatcher):
        pytest.skip("inotify tells of the name alone")
    file = watched.handle("old/file")
    watched.elsewhere("ln old/file link")
    await watched.told()
    watched.elsewhere("rm link")
    assert AttributesChanged(file) in await watched.told()


async def test_nothing_that_the_storage_does_is_told(watched: Watched) -> None:
    storage, root = watched.storage, watched.root
    await watched.told()
    directory = storage.mkdir(root, b"directory", 0o2775, Credentials(1000, 1000)).handle
    file = storage.create(directory, b"file", 0o640, Credentials(1000, 1000))
    storage.write(file.handle, 0, b"content")
    storage.write(file.handle, 7, b"more")
    storage.setattr(file.handle, AttributeChanges(mode=0o600, uid=1, size=3, mtime_ns=5))
    storage.setxattr(file.handle, b"user.x", b"value", 0)
    storage.removexattr(file.handle, b"user.x")
    storage.fallocate(file.handle, 0, 0, 10_000)
    other = storage.create(root, b"other", 0o640, ME).handle
    storage.copy_range(file.handle, 0, other, 0, 100)
    storage.link(file.handle, root, b"link")
    symlink = storage.symlink(root, b"symlink", b"target", ME).handle
    fifo = storage.mknod(root, b"fifo", 0o010644, 0, ME).handle
    storage.rename(root, b"link", directory, b"moved", 0)
    storage.rename(root, b"symlink", root, b"fifo", RENAME_EXCHANGE)
    storage.setattr(directory, AttributeChanges(mode=0o700))
    storage.pin(other)
    storage.unlink(root, b"other")
    storage.unpin(other)
    storage.rename(root, b"fifo", root, b"symlink", 0)
    storage.unlink(directory, b"moved")
    storage.unlink(directory, b"file")
    storage.rmdir(root, b"directory")
    told = await watched.told()
    assert about(told, root, directory, file.handle, other, symlink, fifo) == []


async def test_an_event_is_about_what_its_name_led_to_then(watched: Watched) -> None:
    """What was written, by whomever, is not told of the inode that has its name by now."""
    storage, root = watched.storage, watched.root
    await watched.told()
    files = [storage.create(root, name, 0o644, ME).handle for name in (b"0", b"1", b"2")]
    storage.write(files[0], 0, b"content")
    storage.rename(root, b"1", root, b"0", 0)
    assert about(await watched.told(), *files) == []
    watched.elsewhere("echo content > 0")
    storage.rename(root, b"2", root, b"0", 0)
    assert ContentChanged(files[2]) not in about(await watched.told(), *files)


async def test_what_was_renamed_since_is_told(watched: Watched) -> None:
    storage, root = watched.storage, watched.root
    file = storage.create(root, b"file", 0o644, ME).handle
    await watched.told()
    watched.elsewhere("echo content > file")
    storage.rename(root, b"file", root, b"renamed", 0)
    assert ContentChanged(file) in await watched.told()


async def test_both_at_work_in_turn(watched: Watched) -> None:
    """No change of the other process passes for the storage's, although it is to the same name."""
    storage, root = watched.storage, watched.root
    for number in range(20):
        name = f"{number}"
        file = storage.create(root, name.encode(), 0o644, ME).handle
        storage.write(file, 0, b"content")
        watched.elsewhere(f"chmod 600 {name}; echo more >> {name}; rm {name}")
        told = await watched.told()
        assert NameChanged(root, name.encode()) in told
        again = storage.create(root, name.encode(), 0o644, ME).handle
        assert about(await watched.told(), root, file, again) == []


async def test_what_happens_in_new_directories_is_told(watched: Watched) -> None:
    watched.elsewhere("mkdir -p one/two/three; mkdir one/other")
    await watched.told()
    watched.storage.mkdir(watched.handle("one/two"), b"own", 0o755, ME)
    await watched.told()
    for name in ("one/two/three", "one/other", "one/two/own"):
        directory = watched.handle(name)
        watched.elsewhere(f"touch {name}/file")
        assert NameChanged(directory, b"file") in await watched.told(), name
    watched.elsewhere("mv one/two elsewhere; rmdir elsewhere/own 2>/dev/null || rm -r elsewhere/own")
    await watched.told()
    three = watched.handle("elsewhere/three")
    watched.elsewhere("echo content > elsewhere/three/file")
    assert ContentChanged(watched.handle("elsewhere/three/file")) in await watched.told()
    watched.elsewhere("rm -r elsewhere one")
    assert NameChanged(three, b"file") in await watched.told()


async def test_a_tree_that_is_moved_into_the_export_is_watched(watched: Watched) -> None:
    with tempfile.TemporaryDirectory(dir=watched.path.parent) as outside:
        watched.elsewhere(f"mkdir -p {outside}/tree/below; mv {outside}/tree tree")
    assert NameChanged(watched.root, b"tree") in await watched.told()
    below = watched.handle("tree/below")
    watched.elsewhere("touch tree/below/file")
    assert NameChanged(below, b"file") in await watched.told()


async def test_too_many_changes_are_told_as_such(watched: Watched) -> None:
    program = f"import os; [os.mknod(str(n)) for n in range({EVENTS_MAX + 1000})]"
    watched.elsewhere(f"{sys.executable} -c '{program}'")
    found: list[Change] = []
    with trio.fail_after(TOLD_SECONDS_MAX):
        while Overflow() not in found:
            found += await watched.watcher.changes()
    await watched.told()
    old = watched.handle("old")
    watched.elsewhere("touch old/later")
    assert NameChanged(old, b"later") in await watched.told()


# --- which watcher ---


def refuse(*_: object) -> int:
    raise WatchError("not permitted")


@pytest.mark.parametrize("secret", [SECRET, None])
def test_the_best_that_is_permitted_is_chosen(
    tmp_path: Path, secret: bytes | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def chosen(watch: Watch) -> type[Watcher] | None:
        storage, watcher = open_export(tmp_path, secret, watch)
        if watcher is not None:
            watcher.close()
        storage.close()
        return None if watcher is None else type(watcher)

    assert chosen(Watch.OFF) is None
    assert chosen(Watch.INOTIFY) is InotifyWatcher
    assert chosen(Watch.AUTO) is (FanotifyWatcher if secret else InotifyWatcher)
    monkeypatch.setattr(fanotify, "_open", refuse)
    assert chosen(Watch.AUTO) is InotifyWatcher
    with pytest.raises(WatchError):
        chosen(Watch.FANOTIFY)
    monkeypatch.setattr(choose, "EventQueue", refuse)
    assert chosen(Watch.AUTO) is None
    assert "not noticed" in caplog.text
    with pytest.raises(WatchError):
        chosen(Watch.INOTIFY)


def test_more_directories_than_may_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: EventQueue, path: bytes, mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventQueue, "add", full)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WatchError, match="No space"):
        open_export(tmp_path, SECRET, Watch.INOTIFY)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_nothing_is_left_open(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for watch in Watch:
        storage, watcher = open_export(tmp_path, SECRET, watch)
        if watcher is not None:
            watcher.close()
        storage.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("mask", "inode", "name", "expected"),
    [
        (fanotify.FAN_Q_OVERFLOW, None, None, [Overflow()]),
        (fanotify.FAN_CREATE, None, b"n", [NameChanged(InodeHandle(b"D"), b"n")]),
        (
            fanotify.FAN_DELETE | fanotify.FAN_ATTRIB, b"I", b"n",
            [NameChanged(InodeHandle(b"D"), b"n"), AttributesChanged(InodeHandle(b"I"))],
        ),
        (fanotify.FAN_MODIFY | fanotify.FAN_ATTRIB, b"I", b"n", [ContentChanged(InodeHandle(b"I"))]),
        (fanotify.FAN_ATTRIB, b"I", None, [AttributesChanged(InodeHandle(b"I"))]),
        (fanotify.FAN_ATTRIB | fanotify.FAN_ONDIR, None, b".", [AttributesChanged(InodeHandle(b"D"))]),
    ],
)  # fmt: skip
def test_what_an_event_of_fanotify_means(
    mask: int, inode: bytes | None, name: bytes | None, expected: list[Change]
) -> None:
    event = fanotify.Event(mask, inode, None if name is None else b"D", name or b"")
    assert list(fanotify.changes_of(event, InodeHandle)) == expected
