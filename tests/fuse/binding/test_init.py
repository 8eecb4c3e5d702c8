"""What FUSE_INIT negotiates, and mounts that must not happen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfsfuse.fuse.binding.abi import InitFlag
from nfsfuse.fuse.binding.init import LOCKS, InitOptions
from tests.fuse.toymount import ROOT, TIMEOUT_SECONDS, Daemon, Mounter, environment


def granted(daemon: Daemon) -> str:
    return str(daemon.ask("status")["negotiated"])


def test_init_as_granted(toy: Mounter) -> None:
    daemon = toy(max_background=40, congestion_threshold=30, cache_symlinks=True)
    text = granted(daemon)
    assert "\n" not in text
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    on = set(text.partition("on: ")[2].partition(";")[0].upper().split())
    assert {
        "POSIX_LOCKS", "FLOCK_LOCKS", "PARALLEL_DIROPS", "ATOMIC_O_TRUNC", "DO_READDIRPLUS", "BIG_WRITES",
        "MAX_PAGES", "EXPLICIT_INVAL_DATA", "HANDLE_KILLPRIV_V2", "HAS_EXPIRE_ONLY", "CACHE_SYMLINKS",
    } <= on  # fmt: skip
    assert not {"AUTO_INVAL_DATA", "WRITEBACK_CACHE", "HANDLE_KILLPRIV", "READDIRPLUS_AUTO"} & on
    assert (fields["max_write"], fields["max_background"]) == (str(1 << 20), "40")
    connection = Path(f"/sys/fs/fuse/connections/{os.minor(os.stat(daemon.path).st_dev)}")
    if connection.exists():  # the kernel's own word, where fusectl is mounted
        assert connection.joinpath("max_background").read_text().strip() == "40"
        assert connection.joinpath("congestion_threshold").read_text().strip() == "30"


def test_a_large_write_is_one_request(toy: Mounter) -> None:
    daemon = toy()
    # Touched memory: Linux 6.18 splits a write(2) at the pages of its source that are not mapped yet.
    daemon.run("os.write(os.open(path,os.O_CREAT|os.O_WRONLY),os.urandom(1<<20))", "f")
    assert [facts["size"] for facts in daemon.facts("write")] == [1 << 20]


def test_no_probe_for_capabilities_before_every_write(toy: Mounter) -> None:
    """HANDLE_KILLPRIV_V2 sets SB_NOSEC. (The toy has no getxattr, so the kernel would ask but once anyway;
    what is checked is that the flag was granted and writes come without a SETATTR.)"""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("fd=os.open(path,os.O_WRONLY)\nfor _ in range(5): os.write(fd,b'y')", "f")
    operations = [e["operation"] for e in daemon.ask("journal")]
    assert operations.count("write") == 5
    assert "setattr" not in operations


def test_nolock_leaves_locks_to_the_kernel(toy: Mounter) -> None:
    daemon = toy(locks=False)
    daemon.put("f", b"x")
    daemon.run("fcntl.flock(os.open(path,os.O_RDWR),2)", "f")
    assert daemon.ask("journal", operation="setlk") == []


def test_locks_without_an_implementation_are_refused(toy: Mounter) -> None:
    daemon = toy(bare=True)
    assert "implements no getlk and setlk" in daemon.started["error"]
    assert not os.path.ismount(daemon.path)


def test_readdirplus_auto_without_readdir_is_refused(toy: Mounter) -> None:
    daemon = toy(bare=True, locks=False, readdirplus_auto=True)
    assert "implements no readdir" in daemon.started["error"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip


def test_pyfuse3_first_is_a_clear_error() -> None:
    done = python("import pyfuse3, nfsfuse.fuse.binding.supplement")
    assert done.returncode == 1
    assert "SupplementError: pyfuse3 was imported before nfsfuse.fuse" in done.stderr


def test_a_missing_build_is_a_clear_error(tmp_path: Path) -> None:
    package = tmp_path / "nfsfuse" / "fuse" / "binding"
    package.mkdir(parents=True)
    for part in ("__init__.py", "fuse/__init__.py", "fuse/binding/__init__.py", "fuse/binding/libraries.py"):
        tmp_path.joinpath("nfsfuse", part).write_bytes(ROOT.joinpath("nfsfuse", part).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", "import nfsfuse.fuse.binding.libraries"],
        env={**environment(), "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=TIMEOUT_SECONDS, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "run: pip install ." in done.stderr


def test_pyfuse3_cannot_mount_past_the_supplement(tmp_path: Path) -> None:
    done = python(
        "from nfsfuse.fuse.binding.libraries import pyfuse3\n"
        f"pyfuse3.init(pyfuse3.Operations(), {str(tmp_path)!r}, {{'fsname=toyfs'}})"
    )
    assert done.returncode == 1
    assert "fuse_session_mount failed" in done.stderr
    assert "mounting must go through nfsfuse.fuse.binding.supplement.mount()" in done.stderr
    assert not os.path.ismount(tmp_path)


def test_a_kernel_that_lacks_what_is_required_is_refused(toy: Mounter) -> None:
    """As one without POSIX_LOCKS would be: no program gets to work on such a mount."""
    daemon = toy(demanding=True)
    assert "does not offer: <InitFlag.MAP_ALIGNMENT" in daemon.started["error"]
    assert daemon.process.wait(timeout=TIMEOUT_SECONDS) == 1
    assert not os.path.ismount(daemon.path)


def test_locks_are_required_unless_nolock() -> None:
    assert LOCKS & ~InitOptions().required() == InitFlag(0)
    assert LOCKS & InitOptions(locks=False).required() == InitFlag(0)


@pytest.mark.parametrize(
    "wrong",
    [{"max_write": 4095}, {"max_write": 2 << 20}, {"max_background": 0}, {"congestion_threshold": 99}],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|needed"):
        InitOptions(**wrong)


def test_read_ahead(toy: Mounter) -> None:
    daemon = toy()
    device = os.stat(daemon.path).st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert knob.read_text().strip() == "128"
    if not daemon.ask("read_ahead", kib=1024):
        pytest.skip("not permitted here")
    assert knob.read_text().strip() == "1024"
