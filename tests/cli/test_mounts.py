"""What is mounted: found without touching the mount, which may hang."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nfsfuse.cli import mounts
from nfsfuse.cli.mounts import Mounted, canonical, connection_of, is_dead, is_mounted, mounted_at, targets

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

    def touching(path: str, **how: Any) -> os.stat_result:
        touched.append(os.fspath(path))
        return lstat(path, **how)

    monkeypatch.setattr(os, "lstat", touching)
    assert canonical(f"{tmp_path}/link/mount") == f"{os.path.realpath(tmp_path)}/real/mount"
    assert canonical(f"{tmp_path}/link/mount/") == f"{os.path.realpath(tmp_path)}/real/mount"
    assert touched, "the parents were looked at"
    assert not [path for path in touched if path.endswith("/mount")]


def test_a_directory_is_no_dead_mount(tmp_path: Path) -> None:
    assert not is_dead(str(tmp_path))
    assert not is_dead(str(tmp_path / "absent"))


def test_all_targets_of_a_type(table: Path) -> None:
    expected = {"/mnt/plain", "/mnt/with space\ttab\\back\nline", "/mnt/twice", "/mnt/last"}
    assert targets("fuse.nfsfuse", table) == expected


INFO = b"""\
21 1 0:22 / /proc rw - proc proc rw
30 1 0:300 / /mnt/a\\040b rw - fuse.nfsfuse server rw
"""


def test_the_number_of_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the kernel's own, also where glibc's st_dev is another one (from minor 256 on)."""
    info = tmp_path / "mountinfo"
    info.write_bytes(INFO)
    monkeypatch.setattr(mounts, "MOUNT_INFO", info)
    assert connection_of("/mnt/a b") == 300
    assert is_mounted(300)
    assert not is_mounted(301)
    with pytest.raises(FileNotFoundError):
        connection_of("/mnt/a")
