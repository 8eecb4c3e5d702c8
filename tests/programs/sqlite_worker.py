"""sqlite_worker DATABASE ROLE NUMBER SECONDS: a program that uses one SQLite database with others.

A writer commits one row at a time, numbered, and prints what it has committed; a reader checks that rows never
vanish and that each writer's are without gaps. Both try again when SQLite gives up waiting for a lock
(SQLITE_BUSY: it polls, without queueing, so the others can be luckier for long), and end with an error at
anything else. The journal mode is the database's; NFSFUSE_TEST_MMAP_SIZE sets mmap_size (bytes).
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from typing import Any, Final

BUSY_SECONDS_MAX: Final = 5.0
"""How long SQLite itself tries to get a lock."""

UNLUCKY_SECONDS_MAX: Final = 60.0
"""How long one statement may be tried again: from then on it is taken for a lock that was lost."""


def main() -> None:
    """Work."""
    path, role, number, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    database = sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
    database.execute(f"pragma mmap_size = {int(os.environ.get('NFSFUSE_TEST_MMAP_SIZE', '0'))}")
    end = time.monotonic() + seconds
    try:
        print((write if role == "writer" else read)(database, number, end))
    except sqlite3.Error as exc:
        exc.add_note(f"{exc.sqlite_errorname} ({role} {number})")
        raise


def write(database: sqlite3.Connection, writer: int, end: float) -> int:
    """Commit rows until *end*; how many."""
    count = 0
    while time.monotonic() < end:
        patiently(database, "begin immediate")
        (last,) = database.execute("select count(*) from t where writer = ?", (writer,)).fetchone()
        assert last == count, f"writer {writer} has committed {count} rows and finds {last}"
        filler = bytes([writer]) * (count * 37 % 3000)
        database.execute("insert into t values (?, ?, ?)", (writer, count, filler))
        patiently(database, "commit")
        count += 1
    return count


def patiently(database: sqlite3.Connection, statement: str) -> list[Any]:
    """The rows of *statement*, which changes nothing when it ends in SQLITE_BUSY."""
    give_up = time.monotonic() + UNLUCKY_SECONDS_MAX
    while True:
        try:
            return database.execute(statement).fetchall()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise


def read(database: sqlite3.Connection, reader: int, end: float) -> int:
    """Check the rows until *end*; how often."""
    seen: dict[int, int] = {}
    looks = 0
    while time.monotonic() < end:
        query = "select writer, count(*), max(number) from t group by writer"
        for writer, count, last in patiently(database, query):
            assert count == last + 1, f"writer {writer}: {count} rows, and the last is number {last}"
            assert count >= seen.get(writer, 0), f"writer {writer}: {seen[writer]} rows before, {count} now"
            seen[writer] = count
        looks += 1
    return looks


if __name__ == "__main__":
    main()
