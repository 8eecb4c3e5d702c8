"""Changes made directly in the exported directory, by this process: a mount sees them soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.rig.rig import Failed, Rig, Server
from tests.mount.conftest import TEST_SECONDS_MAX

SECONDS_MAX = 20.0
"""Until a change is seen; thousands of times what it takes, for a machine that is busy."""


@dataclass(frozen=True)
class Watched:
    """A mount of an export that is watched, and what both are called."""

    rig: Rig
    server: Server
    mount: Path
    export: Path


@pytest.fixture(scope="module", params=["fanotify", "inotify", "volatile"])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with Rig() as rig:
        arguments = ["-v"]  # twice by now: every recall is told
        if request.param == "volatile":
            arguments += ["--volatile-handles"]
        else:
            arguments += ["--watch", request.param]
        server = rig.server(arguments=arguments)
        yield Watched(rig, server, rig.mount(server), server.export)
        for log in (server.log, *rig.directory.glob("mount-*.log")):
            assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def there(watched: Watched, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A new directory for this test: in the mount, and in the export."""
    watched.rig.deadline(TEST_SECONDS_MAX)
    name = f"{watched.rig.count()}"
    (watched.mount / name).mkdir()
    yield watched.mount / name, watched.export / name
    watched.rig.deadline(None)


def seen(look: Callable[[], object], expected: object) -> None:
    """Wait until *look* tells what is expected."""
    end = time.monotonic() + SECONDS_MAX
    while (found := look()) != expected:
        assert time.monotonic() < end, (found, expected)
        time.sleep(0.002)


def test_created_and_removed(there: tuple[Path, Path]) -> None:
    mount, export = there
    assert not (mount / "file").exists()
    assert os.listdir(mount) == []
    (export / "file").write_text("content")
    seen((mount / "file").exists, True)
    seen(lambda: os.listdir(mount), ["file"])
    seen((mount / "file").read_text, "content")
    (export / "file").unlink()
    seen((mount / "file").exists, False)
    seen(lambda: os.listdir(mount), [])


def test_renamed(there: tuple[Path, Path]) -> None:
    mount, export = there
    (mount / "a").write_text("a")
    (mount / "b").write_text("b")
    assert sorted(os.listdir(mount)) == ["a", "b"]
    os.rename(export / "a", export / "b")
    seen((mount / "a").exists, False)
    seen((mount / "b").read_text, "a")
    os.rename(export / "b", export / "c")
    seen((mount / "c").exists, True)
    seen(lambda: os.listdir(mount), ["c"])


def test_written(there: tuple[Path, Path]) -> None:
    mount, export = there
    (mount / "file").write_text("before")
    assert (mount / "file").read_text() == "before"
    (export / "file").write_text("after, and longer")
    seen((mount / "file").read_text, "after, and longer")
    os.truncate(export / "file", 5)
    seen(lambda: (mount / "file").stat().st_size, 5)
    seen((mount / "file").read_text, "after")
    with (export / "file").open("r+b") as file:
        file.write(b"AFTER")
    seen((mount / "file").read_text, "AFTER")


def test_attributes(there: tuple[Path, Path]) -> None:
    mount, export = there
    (mount / "file").write_text("content")
    (mount / "file").chmod(0o644)
    (export / "file").chmod(0o600)
    seen(lambda: (mount / "file").stat().st_mode & 0o777, 0o600)
    os.utime(export / "file", (1, 2))
    seen(lambda: (mount / "file").stat().st_mtime, 2.0)
    os.setxattr(export / "file", "user.x", b"value")
    seen(lambda: os.listxattr(mount / "file"), ["user.x"])
    os.link(export / "file", export / "second")
    seen(lambda: (mount / "file").stat().st_nlink, 2)
    export.chmod(0o700)
    seen(lambda: mount.stat().st_mode & 0o777, 0o700)


def test_directories_that_are_new(there: tuple[Path, Path]) -> None:
    mount, export = there
    assert os.listdir(mount) == []
    (export / "one" / "two").mkdir(parents=True)
    seen(lambda: os.listdir(mount), ["one"])
    seen((mount / "one" / "two").is_dir, True)
    assert not (mount / "one" / "two" / "file").exists()
    (export / "one" / "two" / "file").write_text("deep")
    seen((mount / "one" / "two" / "file").exists, True)
    (export / "one").rename(export / "other")
    seen((mount / "other" / "two" / "file").exists, True)
    (export / "other" / "two" / "file").write_text("changed")
    seen((mount / "other" / "two" / "file").read_text, "changed")
    (export / "other" / "two" / "file").unlink()
    (export / "other" / "two").rmdir()
    seen(lambda: os.listdir(mount / "other"), [])


def test_what_clients_do_is_not_taken_for_a_change_on_the_server(
    watched: Watched, there: tuple[Path, Path]
) -> None:
    mount, export = there

    def recalls() -> int:
        return watched.server.log.read_text().count("changed on the server")

    for mark in ("the new directory is watched", "and what was before this has been told of"):
        assert not (mount / mark).exists()
        (export / mark).mkdir()
        seen((mount / mark).exists, True)
    before = recalls()
    for number in range(100):
        file = mount / f"{number}"
        file.write_text("content")
        file.chmod(0o600)
        os.setxattr(file, "user.x", b"value")
        os.truncate(file, 100)
        assert file.read_bytes()[:7] == b"content"
        os.link(file, mount / "link")
        file.rename(mount / "renamed")
        (mount / "link").unlink()
        (mount / "directory").mkdir()
        (mount / "directory").rmdir()
    # What was done before this has been told of when this is.
    assert (mount / "renamed").stat().st_mode & 0o777 == 0o600
    (export / "renamed").chmod(0o640)
    seen(lambda: (mount / "renamed").stat().st_mode & 0o777, 0o640)
    assert recalls() - before == 1


def test_a_way_to_watch_that_cannot_be_had_is_refused(rig: Rig) -> None:
    with pytest.raises(Failed, match="fanotify needs"):
        rig.server(arguments=["--volatile-handles", "--watch", "fanotify"])


def test_unwatched_changes_are_not_noticed(rig: Rig) -> None:
    """What the others are for."""
    server = rig.server(arguments=["--watch", "off"])
    mount = rig.mount(server)
    (mount / "file").write_text("content")
    (mount / "file").chmod(0o644)
    (server.export / "file").chmod(0o600)
    assert (mount / "file").stat().st_mode & 0o777 == 0o644
