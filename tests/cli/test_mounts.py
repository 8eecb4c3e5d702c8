"""What is mounted, and who serves it: found without touching the mount, which may hang."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nfsfuse.cli import registry
from nfsfuse.cli.mounts import Mounted, canonical, is_dead, mounted_at
from nfsfuse.protocol.types import SessionId

TABLE = (
    b"proc /proc proc rw 0 0\n"
    b"h:1 /mnt/plain fuse.nfsfuse rw 0 0\n"
    b"unix:/a\\040b /mnt/with\\040space\\011tab\\134back\\012line fuse.nfsfuse rw 0 0\n"
    b"below /mnt/twice ext4 rw 0 0\n"
    b"above /mnt/twice fuse.nfsfuse rw 0 0\n"
    b"odd /mnt/\xff\xfe tmpfs rw 0 0\n"
    b"odd /mnt/next\xc2\x85line\x0c tmpfs rw 0 0\n"
    b"h:2 /mnt/last fuse.nfsfuse rw 0 0\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mounts"
    path.write_bytes(TABLE)
    return path


@pytest.mark.parametrize(
    ("path", "source", "fstype"),
    [
        ("/mnt/plain", "h:1", "fuse.nfsfuse"),
        ("/mnt/./x/../plain/", "h:1", "fuse.nfsfuse"),
        ("/mnt/with space\ttab\\back\nline", "unix:/a b", "fuse.nfsfuse"),
        ("/mnt/twice", "above", "fuse.nfsfuse"),
        (os.fsdecode(b"/mnt/\xff\xfe"), "odd", "tmpfs"),
        ("/mnt/next\x85line\x0c", "odd", "tmpfs"),
        ("/mnt/last", "h:2", "fuse.nfsfuse"),
    ],
)
def test_found_in_the_table(table: Path, path: str, source: str, fstype: str) -> None:
    assert mounted_at(path, table) == Mounted(source, canonical(path), fstype)


@pytest.mark.parametrize("path", ["/mnt", "/mnt/plain/below", "/mnt/with\\040space"])
def test_not_in_the_table(table: Path, path: str) -> None:
    assert mounted_at(path, table) is None


def test_the_kernels_own_table_is_understood() -> None:
    found = mounted_at("/proc")
    assert found is not None
    assert found.fstype == "proc"


def test_canonical_follows_links_on_the_way_and_does_not_touch_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "mount").symlink_to("elsewhere")
    touched: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **how: touched.append(os.fspath(path)) or lstat(path, **how))
    assert canonical(f"{tmp_path}/link/mount") == f"{os.path.realpath(tmp_path)}/real/mount"
    assert canonical(f"{tmp_path}/link/mount/") == f"{os.path.realpath(tmp_path)}/real/mount"
    assert touched, "the parents were looked at"
    assert not [path for path in touched if path.endswith("/mount")]


def test_a_directory_is_no_dead_mount(tmp_path: Path) -> None:
    assert not is_dead(str(tmp_path))
    assert not is_dead(str(tmp_path / "absent"))


# --- the registry ---


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_directory", lambda: tmp_path / "run")
    return tmp_path / "run"


SERVER, SESSION = "[::1]:7209", SessionId(b"0123456789abcdef")


def test_registered_until_unregistered(directory: Path) -> None:
    assert registry.served_by("/mnt/a b") is None
    registry.register("/mnt/a b", SERVER, SESSION)
    assert registry.served_by("/mnt/../mnt/a b/") == os.getpid()
    assert registry.served_by("/mnt/a") is None
    registry.unregister("/mnt/a b")
    assert registry.served_by("/mnt/a b") is None
    registry.unregister("/mnt/a b")
    assert list(directory.iterdir()) == []


def test_a_successor_is_not_unregistered(directory: Path) -> None:
    registry.register("/mnt/a", SERVER, SESSION)
    (file,) = directory.iterdir()
    file.write_text("1\n")
    registry.unregister("/mnt/a")
    assert registry.served_by("/mnt/a") == 1


def test_a_file_that_is_just_being_written_tells_nothing(directory: Path) -> None:
    registry.register("/mnt/a", SERVER, SESSION)
    (file,) = directory.iterdir()
    file.write_text("")
    assert registry.served_by("/mnt/a") is None


def test_the_session_of_a_daemon_that_is_dead(directory: Path) -> None:
    assert registry.session_of_the_dead("/mnt/a", SERVER) is None
    registry.register("/mnt/a", SERVER, SESSION)
    assert registry.session_of_the_dead("/mnt/a", SERVER) is None, "it lives"
    (file,) = directory.iterdir()
    assert file.stat().st_mode & 0o077 == 0, "who knows it can end it"
    ended = subprocess.Popen(["true"])
    ended.wait()
    file.write_text(file.read_text().replace(str(os.getpid()), str(ended.pid)))
    assert registry.session_of_the_dead("/mnt/a", SERVER) == SESSION
    assert registry.session_of_the_dead("/mnt/a", "127.0.0.1:7209") is None, "of another server"
    file.write_text(f"{ended.pid}\n")
    assert registry.session_of_the_dead("/mnt/a", SERVER) is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert registry._directory() == Path("/run/nfsfuse")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert registry._directory() == Path("/run/user/1000/nfsfuse")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", "/home/u")
    assert registry._directory() == Path("/home/u/.cache/nfsfuse")
