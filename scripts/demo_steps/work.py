"""What the demo does in the mounts, one function a step; each runs in a process of its own.

``python -m scripts.demo_steps.work STEP SCRATCH MOUNT1 MOUNT2``: prints what it saw as its last line (lines
before it are progress), and ends with an error if that is not what it should be.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from scripts.rig.rig import ROOT

ENTRIES: Final = 20_000
SPARSE_SIZE: Final = 4 << 40
PROGRESS_SECONDS: Final = 2.0

SOURCES: Final = "stdlib.tar"


class Progress:
    """Prints how far a long step is, now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def at(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            print(text, flush=True)


def pack(scratch: Path, one: Path, two: Path) -> str:
    """Prepare: a tar of this Python's standard library, without what is compiled or installed later."""
    unwanted = {"__pycache__", "site-packages", "dist-packages", ".pytest_cache"}
    progress = Progress()
    count = 0

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal count
        if Path(member.name).name in unwanted:
            return None
        count += 1
        progress.at(f"{count} packed")
        return member if member.isreg() or member.isdir() or member.issym() else None

    with tarfile.open(scratch / SOURCES, "w") as archive:
        archive.add(sysconfig.get_path("stdlib"), "stdlib", filter=wanted)
    return f"{count} names, {(scratch / SOURCES).stat().st_size >> 20} MiB"


def unpack(scratch: Path, one: Path, two: Path) -> str:
    """Unpack it into mount 1, with tar(1)."""
    checkpoints = ["--checkpoint=100", "--checkpoint-action=echo=record %u"]
    options = ["--blocking-factor=256", *checkpoints]  # writes of 128 KiB, not of 10
    command = ["tar", "-C", str(one), *options, "-xf", str(scratch / SOURCES)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tar:
        assert tar.stderr is not None
        for line in tar.stderr:
            print(line.rstrip(), flush=True)
    assert tar.returncode == 0, f"tar: exit status {tar.returncode}"
    count = sum(len(directories) + len(files) for _, directories, files in os.walk(one / "stdlib"))
    return f"{count} names unpacked"


def compare(scratch: Path, one: Path, two: Path) -> str:
    """Compare what is seen through mount 2 with the tar: names, bytes, modes and times."""
    progress = Progress()
    size = files = 0
    expected = set()
    with tarfile.open(scratch / SOURCES) as archive:
        for member in archive:
            path = two / member.name
            expected.add(str(path))
            found = path.lstat()
            if member.issym():
                assert os.readlink(path) == member.linkname, path
                continue
            assert stat.S_IMODE(found.st_mode) == member.mode, f"{path}: mode {found.st_mode:o}"
            assert member.isdir() or found.st_mtime == member.mtime, f"{path}: time {found.st_mtime}"
            content = archive.extractfile(member)
            if content is not None:
                data = content.read()
                assert path.read_bytes() == data, f"{path} differs"
                size += len(data)
                files += 1
                progress.at(f"{files} files equal")
    seen = {str(two / "stdlib")}
    for directory, directories, names in os.walk(two / "stdlib"):
        seen.update(os.path.join(directory, name) for name in [*directories, *names])
    assert seen == expected, f"names differ: {sorted(seen ^ expected)[:5]}"
    return f"{files} files, {size / 1e6:.1f} MB, all equal"


def compile_and_run(scratch: Path, one: Path, two: Path) -> str:
    """Compile a C program in mount 1, run it there and on mount 2."""
    shutil.copy(ROOT / "tests/programs/map_shared.c", one / "map_shared.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", "map_shared", "map_shared.c"], cwd=one, check=True)
    for mount in (one, two):
        usage = subprocess.run([mount / "map_shared"], capture_output=True, text=True)
        assert usage.returncode == 2, usage
        assert "usage: map_shared" in usage.stderr, usage
    return f"{(two / 'map_shared').stat().st_size} bytes of program, runs on both"


def map_shared(scratch: Path, one: Path, two: Path) -> str:
    """Write through a shared mapping on one mount, read through one on the other; both ways."""
    ran = subprocess.run([one / "map_shared", one / "mapped", two / "mapped"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def at_once(scratch: Path, one: Path, two: Path) -> str:
    """What one client sees of another, and when: the rows of `scripts.proof.table`."""
    command = [sys.executable, "-m", "scripts.proof.table", str(one), str(two)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    rows = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, "; ".join(row for row in rows if "NOT" in row) or ran.stderr[-500:]
    turn = next(row.rsplit(",", 1)[1].strip() for row in rows if "a turn" in row)
    return f"{len(rows)} of {len(rows)} rows held; mmap ping-pong {turn}"


def sqlite(scratch: Path, one: Path, two: Path) -> str:
    """A database made on mount 1 (rollback journal), read and changed on mount 2, read again on 1."""
    rows = 2000
    with sqlite3.connect(one / "demo.db") as database:
        assert database.execute("pragma journal_mode = delete").fetchone() == ("delete",)
        database.execute("create table t (id integer primary key, square integer)")
        database.executemany("insert into t values (?, ?)", ((i, i * i) for i in range(rows)))
    with sqlite3.connect(two / "demo.db") as other:
        total = other.execute("select count(*), sum(square) from t").fetchone()
        assert total == (rows, sum(i * i for i in range(rows))), total
        other.execute("delete from t where id % 2")
    left = database.execute("select count(*) from t").fetchone()
    assert left == (rows // 2,), left
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    return f"{rows} rows seen, {rows // 2} deleted there, integrity ok"


def list_many(scratch: Path, one: Path, two: Path) -> str:
    """Make a directory of many entries on mount 1, list it on mount 2."""
    progress = Progress()
    (one / "many").mkdir()
    for number in range(ENTRIES):
        os.mknod(one / "many" / f"entry-{number:05}", 0o644 | stat.S_IFREG)
        progress.at(f"{number} of {ENTRIES} made")
    started = time.monotonic()
    names = os.listdir(two / "many")
    took = time.monotonic() - started
    assert len(names) == ENTRIES, f"{len(names)} entries"
    assert set(names) == {f"entry-{number:05}" for number in range(ENTRIES)}
    return f"{len(names)} entries, each once; listed in {took:.2f} s"


def rename_and_unlink(scratch: Path, one: Path, two: Path) -> str:
    """Names changed on one mount have changed on the other when the call returns."""
    for here, there in ((one, two), (two, one)):
        (here / "old").write_text("kept")
        assert (there / "old").read_text() == "kept"
        (here / "old").rename(here / "new")
        assert not (there / "old").exists()
        assert (there / "new").read_text() == "kept"
        with (there / "new").open() as still_open:
            (here / "new").unlink()
            assert not (there / "new").exists()
            assert still_open.read() == "kept"
    return "at once, both ways; an open file outlives its name"


def sparse(scratch: Path, one: Path, two: Path) -> str:
    """A file of 4 TiB with one byte in it."""
    with (one / "sparse").open("wb") as file:
        file.truncate(SPARSE_SIZE)
        file.seek(SPARSE_SIZE - 1)
        file.write(b"!")
    found = (two / "sparse").stat()
    assert found.st_size == SPARSE_SIZE, found
    assert found.st_blocks * 512 < 1 << 20, found
    with (two / "sparse").open("rb") as file:
        assert file.read(4096) == bytes(4096)
        file.seek(SPARSE_SIZE - 1)
        assert file.read() == b"!"
    (two / "sparse").unlink()
    return f"{SPARSE_SIZE >> 40} TiB, {found.st_blocks * 512} bytes on the disk"


def extended_attribute(scratch: Path, one: Path, two: Path) -> str:
    """An extended attribute set on mount 1, read and removed on mount 2."""
    (one / "attributed").touch()
    os.setxattr(one / "attributed", "user.origin", b"mount 1\0")
    assert os.getxattr(two / "attributed", "user.origin") == b"mount 1\0"
    os.removexattr(two / "attributed", "user.origin")
    assert os.listxattr(one / "attributed") == []
    return "set, read, removed"


def hard_link(scratch: Path, one: Path, two: Path) -> str:
    """A second name made on mount 2."""
    (one / "first").write_text("one file")
    os.link(two / "first", two / "second")
    first, second = (one / "first").stat(), (one / "second").stat()
    assert first.st_ino == second.st_ino, (first, second)
    assert first.st_nlink == 2, first
    (one / "first").unlink()
    assert (two / "second").read_text() == "one file"
    assert (two / "second").stat().st_nlink == 1
    return "one inode, link counts right on both"


STEPS: Final[dict[str, Callable[[Path, Path, Path], str]]] = {
    function.__name__: function
    for function in (
        pack, unpack, compare, compile_and_run, map_shared, at_once, sqlite, list_many, rename_and_unlink,
        sparse, extended_attribute, hard_link,
    )
}  # fmt: skip


def main(step: str, scratch: str, one: str, two: str) -> int:
    """Run one step; the exit status."""
    try:
        print(STEPS[step](Path(scratch), Path(one), Path(two)))
    except (AssertionError, OSError, sqlite3.Error, subprocess.CalledProcessError) as exc:
        print(f"{type(exc).__name__}: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
