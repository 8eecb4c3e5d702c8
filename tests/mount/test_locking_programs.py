"""Programs with locking of their own, on two mounts at once: SQLite with a rollback journal, git."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Mounts, Pair

SECONDS_MAX = 240.0

WRITER = """
import random, sqlite3, sys, time
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=0, isolation_level=None)
busy = 0

def patiently(statement, *values):
    global busy
    while True:
        try:
            return connection.execute(statement, values)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            busy += 1
            time.sleep(random.uniform(0.001, 0.01))

patiently("PRAGMA synchronous = NORMAL")
for number in range(count):
    patiently("BEGIN IMMEDIATE")
    (before,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (name, number, "x" * (number * 37 % 2000)))
    connection.execute("UPDATE total SET count = count + 1")
    (after,) = connection.execute("SELECT count FROM total").fetchone()
    assert after == before + 1, (before, after)
    patiently("COMMIT")
print(busy)
"""

ROWS = 25
ROWS_SOAK = 500
WRITERS = 4


def test_sqlite_with_a_rollback_journal(mounts: Mounts, pair: Pair, request: pytest.FixtureRequest) -> None:
    rows = ROWS_SOAK if request.config.getoption("--soak") else ROWS
    mounts.rig.deadline(SECONDS_MAX)
    setting_up = sqlite3.connect(pair.one / "db")
    assert setting_up.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    setting_up.executescript(
        "CREATE TABLE rows (writer TEXT, number INTEGER, filler TEXT, PRIMARY KEY (writer, number));"
        "CREATE TABLE total (count INTEGER); INSERT INTO total VALUES (0);"
    )
    setting_up.close()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, (pair.one, pair.two)[number % 2] / "db", str(number), str(rows)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    said = [writer.communicate(timeout=SECONDS_MAX) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, said
    for directory in (pair.one, pair.two, pair.export):
        reading = sqlite3.connect(directory / "db")
        assert reading.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert reading.execute("SELECT count FROM total").fetchone() == (rows * WRITERS,)
        found = reading.execute("SELECT writer, number FROM rows").fetchall()
        assert sorted(found) == sorted((str(writer), row) for writer in range(WRITERS) for row in range(rows))
        reading.close()
    print(f"\n{rows * WRITERS} transactions, SQLITE_BUSY {sum(int(out) for out, _ in said)} times")


COMMITTER = """
set -e
cd "$1"
made=0
while [ $made -lt $3 ]; do
    echo "$2 $made" > "$2-$made"
    until git add "$2-$made" 2> "$4" && git commit -q -m "$2 $made" -- "$2-$made" 2> "$4"; do
        grep -Eq "index.lock|cannot lock ref|Unable to create" "$4" || { cat "$4"; exit 1; }
        sleep 0.01
    done
    made=$((made + 1))
done
"""

COMMITS = 8


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_commits_from_two_mounts_at_once(mounts: Mounts, pair: Pair, tmp_path: Path) -> None:
    mounts.rig.deadline(SECONDS_MAX)

    def git(directory: Path, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git(pair.one, "init", "-q", "-b", "main", "repository")
    one, two = pair.one / "repository", pair.two / "repository"
    for key, value in (("user.name", "Some Body"), ("user.email", "some@body.example"), ("gc.auto", "0")):
        git(one, "config", key, value)
    git(one, "commit", "-q", "--allow-empty", "-m", "first")
    committers = [
        subprocess.Popen(
            ["sh", "-c", COMMITTER, "sh", directory, name, str(COMMITS), tmp_path / name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for directory, name in ((one, "a"), (two, "b"))
    ]
    said = [committer.communicate(timeout=SECONDS_MAX)[0] for committer in committers]
    assert [committer.returncode for committer in committers] == [0, 0], said
    for directory in (one, two):
        assert git(directory, "status", "--porcelain") == ""
        assert set(git(directory, "log", "--format=%s").splitlines()) == {
            "first", *(f"{name} {number}" for name in "ab" for number in range(COMMITS)),
        }  # fmt: skip
        git(directory, "fsck", "--strict")
