"""Which process serves which mount: true also after daemons were killed, whatever their numbers are used for
since."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsfuse.cli import registry
from nfsfuse.protocol.types import SessionId
from scripts.rig.rig import ROOT

SESSION = SessionId(b"0123456789abcdef")

REGISTERED = """
import os, sys
from pathlib import Path
from nfsfuse.cli import registry
registry._directory = lambda: Path(sys.argv[1])
made = registry.Registration(sys.argv[2], "server")
made.renew(b"before")
made.renew(b"0123456789abcdef")
print(os.getpid(), flush=True)
sys.stdin.readline()
made.end()
"""


_directory = registry._directory


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are."""
    monkeypatch.setattr(registry, "_directory", lambda: tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Where something is mounted."""
    targets: set[str] = set()
    monkeypatch.setattr(registry, "targets", lambda fstype: targets)
    return targets


@contextmanager
def daemon(directory: Path, mountpoint: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", REGISTERED, directory, mountpoint],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        try:
            yield process
        finally:
            process.kill()


def test_of_a_daemon_that_serves(directory: Path, tmp_path: Path, mounted: set[str]) -> None:
    mountpoint = str(tmp_path / "a place")
    with daemon(directory, Path(mountpoint)) as process:
        assert registry.served_by(mountpoint) == process.pid
        assert registry.served_by(f"{tmp_path}/../{tmp_path.name}/a place/") == process.pid
        assert registry.served_by(str(tmp_path)) is None
        (file,) = directory.iterdir()
        assert file.stat().st_mode & 0o077 == 0, "who knows the session can end it"
        watched = registry.watch(mountpoint)
        assert watched is not None
        assert watched[0] == process.pid
        os.close(watched[1])
        assert registry.session_of_the_dead(mountpoint, "server") is None
        registry.clear()
        assert registry.served_by(mountpoint) == process.pid
        process.communicate(b"\n")
    assert registry.served_by(mountpoint) is None
    assert list(directory.iterdir()) == []


def test_of_a_daemon_that_was_killed(directory: Path, tmp_path: Path, mounted: set[str]) -> None:
    mountpoint = str(tmp_path / "place")
    with daemon(directory, Path(mountpoint)) as process:
        process.kill()
        process.wait()
    assert registry.served_by(mountpoint) is None
    assert registry.watch(mountpoint) is None
    assert registry.session_of_the_dead(mountpoint, "another server") is None
    mounted.add(mountpoint)
    registry.clear()
    assert registry.session_of_the_dead(mountpoint, "server") == SESSION, "the next mount ends that session"
    mounted.clear()
    registry.clear()
    assert registry.session_of_the_dead(mountpoint, "server") is None
    assert list(directory.iterdir()) == []


def with_my_number(path: Path) -> None:
    """As if the dead daemon's process number were this process's now."""
    _, _, rest = path.read_text().partition("\n")
    path.write_text(f"{os.getpid()}\n{rest}")


def test_a_dead_daemons_number_may_be_anybodys(directory: Path, tmp_path: Path, mounted: set[str]) -> None:
    mountpoint = str(tmp_path / "place")
    with daemon(directory, Path(mountpoint)) as process:
        process.kill()
        process.wait()
    (file,) = directory.iterdir()
    with_my_number(file)
    assert registry.served_by(mountpoint) is None
    assert registry.session_of_the_dead(mountpoint, "server") == SESSION
    registry.clear()
    assert not file.exists()


def test_files_of_earlier_versions_say_it_by_number_alone(
    directory: Path, tmp_path: Path, mounted: set[str]
) -> None:
    mountpoint = str(tmp_path / "place")
    directory.mkdir()
    file = registry._file(mountpoint)
    file.write_text(f"{os.getpid()}\nserver\n{SESSION.hex()}\n")
    assert registry.served_by(mountpoint) == os.getpid()
    registry.clear()
    file.write_text(f"{2**22 + 1}\nserver\n{SESSION.hex()}\n")
    assert registry.session_of_the_dead(mountpoint, "server") == SESSION
    mounted.add(mountpoint)
    registry.clear()
    assert file.exists()
    mounted.clear()
    registry.clear()
    assert not file.exists()


def test_another_daemon_has_taken_the_place_over(directory: Path, tmp_path: Path, mounted: set[str]) -> None:
    """Its file is not removed by the end of the first."""
    mountpoint = tmp_path / "place"
    with daemon(directory, mountpoint) as first, daemon(directory, mountpoint) as second:
        first.communicate(b"\n")
        assert registry.served_by(str(mountpoint)) == second.pid


def full(*_: object) -> int:
    return 0


def missing(*_: object) -> int:
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("write", [full, missing])
def test_a_full_directory_keeps_what_was_said_before(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., int]
) -> None:
    mountpoint = str(tmp_path / "place")
    made = registry.Registration(mountpoint, "server")
    made.renew(SESSION)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        made.renew(SessionId(b"another"))
    monkeypatch.undo()
    monkeypatch.setattr(registry, "_directory", lambda: directory)
    assert [path.suffix for path in directory.iterdir()] == [".pid"]
    assert registry.served_by(mountpoint) == os.getpid()
    made.end()


def test_what_half_written_files_say_is_nothing(directory: Path, tmp_path: Path, mounted: set[str]) -> None:
    directory.mkdir()
    registry._file(str(tmp_path / "place")).write_text("12")
    assert registry.served_by(str(tmp_path / "place")) is None
    (directory / f"{2**22 + 1}.new").touch()
    (directory / f"{os.getpid()}.new").touch()
    registry.clear()
    assert not (directory / f"{2**22 + 1}.new").exists()
    assert (directory / f"{os.getpid()}.new").exists()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert _directory() == Path("/run/nfsfuse")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert _directory() == Path("/run/user/1000/nfsfuse")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", "/home/u")
    assert _directory() == Path("/home/u/.cache/nfsfuse")
