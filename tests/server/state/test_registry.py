"""The registry of sessions: what every one keeps to; and the state directory around it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfsfuse.protocol.limits import PROTOCOL_VERSION
from nfsfuse.protocol.types import ClientId, Epoch, SessionId
from nfsfuse_server.state import database as database_module
from nfsfuse_server.state.database import Database
from nfsfuse_server.state.directory import StateDirectory, boot_id
from nfsfuse_server.state.interface import KnownSession, Registry, StateError
from tests.helpers.memory_state import MemoryRegistry

Reopen = Callable[[], Registry]


def session(number: int, epoch: int = 1) -> KnownSession:
    identity = bytes([number]) * 16
    return KnownSession(SessionId(identity), ClientId(identity), f"client {number}", Epoch(epoch))


@pytest.fixture(params=["database", "memory"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the registry, as a new process would."""
    memory = MemoryRegistry()
    opened: list[Database] = []

    def database() -> Registry:
        for former in opened:
            former.close()
        opened[:] = [Database(tmp_path / "sessions.sqlite")]
        return opened[0]

    yield database if request.param == "database" else lambda: memory
    for last in opened:
        last.close()


def test_every_start_is_an_epoch_of_its_own(reopen: Reopen) -> None:
    assert [reopen().start("boot", 10.0).epoch for _ in range(3)] == [1, 2, 3]


def test_sessions_are_known_until_they_are_removed(reopen: Reopen) -> None:
    registry = reopen()
    assert registry.start("boot", 10.0).sessions == ()
    for number in (1, 2, 3):
        registry.add(session(number))
    registry.remove([session(2).id, session(9).id])
    registry = reopen()
    assert registry.start("boot", 10.0).sessions == (session(1), session(3))
    registry.add(session(4, epoch=2))
    registry.remove([])
    assert reopen().start("boot", 10.0).sessions == (session(1), session(3), session(4, epoch=2))


def test_how_long_a_session_was_waited_for_is_kept(reopen: Reopen) -> None:
    registry = reopen()
    registry.start("boot", 10.0)
    for number in (1, 2):
        registry.add(session(number))
    registry.waited({session(1).id: 2.5, session(2).id: 7.0, session(9).id: 1.0})
    registry.waited({session(2).id: 0.0})
    known = reopen().start("boot", 10.0).sessions
    assert [each.waited_seconds for each in known] == [2.5, 0.0]


def test_in_which_epoch_something_was_granted_last_is_kept(reopen: Reopen) -> None:
    registry = reopen()
    assert registry.start("boot", 10.0).granted_epoch == 0
    registry.add(session(1))
    registry = reopen()
    assert registry.start("boot", 10.0).granted_epoch == 1, "nobody was known: it may grant from the start"
    registry = reopen()
    assert registry.start("boot", 10.0).granted_epoch == 1, "it had to wait for the session"
    registry.granting()
    assert reopen().start("boot", 10.0).granted_epoch == 3


def test_a_reboot_is_told_once(reopen: Reopen) -> None:
    assert not reopen().start("one", 10.0).rebooted, "nothing was there before"
    assert not reopen().start("one", 10.0).rebooted
    assert reopen().start("two", 10.0).rebooted
    assert not reopen().start("two", 10.0).rebooted
    assert not reopen().start("", 10.0).rebooted, "it is not known"


def test_threads_take_turns(reopen: Reopen) -> None:
    registry = reopen()
    registry.start("boot", 10.0)
    threads = [threading.Thread(target=registry.add, args=(session(number),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reopen().start("boot", 10.0).sessions) == 20


def test_the_longest_lease_that_anybody_may_have_is_kept(reopen: Reopen) -> None:
    """The lease may be shortened over a restart: who is waited for has the old one."""
    registry = reopen()
    assert registry.start("boot", 30.0).lease_seconds == 30.0
    registry.add(session(1))
    assert reopen().start("boot", 5.0).lease_seconds == 30.0
    registry = reopen()
    assert registry.start("boot", 10.0).lease_seconds == 30.0, "nobody knows whether it came back in between"
    registry.granting()  # it has come back, or is forgotten
    assert reopen().start("boot", 5.0).lease_seconds == 10.0
    registry = reopen()
    assert registry.start("boot", 60.0).lease_seconds == 60.0
    registry.remove([session(1).id])
    assert reopen().start("boot", 5.0).lease_seconds == 5.0, "there is nobody"


def test_a_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript("""
            CREATE TABLE server (epoch INTEGER NOT NULL, boot_id TEXT NOT NULL);
            INSERT INTO server VALUES (7, 'boot');
            CREATE TABLE sessions (
                id BLOB PRIMARY KEY, client_id BLOB NOT NULL, client_name TEXT NOT NULL, epoch INTEGER NOT NULL
            ) WITHOUT ROWID;
            PRAGMA user_version = 1;
        """)
        known = session(1)
        connection.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, ?)",
            (known.id, known.client_id, known.client_name, known.epoch),
        )
    connection.close()
    database = Database(path, reclaimable=False)  # what the session speaks does not matter
    start = database.start("boot", 10.0)
    assert (start.epoch, start.sessions, start.granted_epoch) == (8, (known,), 7)
    database.waited({known.id: 1.5})
    database.close()
    database = Database(path)
    assert [each.waited_seconds for each in database.start("boot", 10.0).sessions] == [1.5]
    database.close()


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match=r"of a later nfsfuse-server .*upgrade this one"):
        Database(path)


def of_the_first_release(path: Path, *sessions: KnownSession) -> None:
    """A database as the first release (version 3) has left it."""
    with sqlite3.connect(path) as connection:
        connection.executescript("""
            CREATE TABLE server (
                epoch INTEGER NOT NULL, boot_id TEXT NOT NULL, granted_epoch INTEGER NOT NULL DEFAULT 0,
                lease_seconds REAL NOT NULL DEFAULT 0, longest_lease_seconds REAL NOT NULL DEFAULT 0
            );
            INSERT INTO server VALUES (7, 'boot', 7, 10.0, 10.0);
            CREATE TABLE sessions (
                id BLOB PRIMARY KEY, client_id BLOB NOT NULL, client_name TEXT NOT NULL, epoch INTEGER NOT NULL,
                waited_seconds REAL NOT NULL DEFAULT 0
            ) WITHOUT ROWID;
            PRAGMA user_version = 3;
        """)
        connection.executemany(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, 0)",
            [(known.id, known.client_id, known.client_name, known.epoch) for known in sessions],
        )
    connection.close()


def test_sessions_that_speak_another_protocol_are_left_to_the_server_that_speaks_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    of_the_first_release(path, *map(session, range(7)))
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StateError, match=r"7 clients may hold files .*, [.][.][.]") as caught:
            Database(path)
        assert "unmount them" in str(caught.value)
        assert f"protocol version 1, this server {PROTOCOL_VERSION}" in str(caught.value)
        assert path.read_bytes() == before, "that server can still be started"


def test_a_database_of_the_first_release_without_sessions_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sessions.sqlite"
    of_the_first_release(path)
    known = session(1)
    database = Database(path)
    assert (database.start("boot", 10.0).epoch, known.epoch) == (8, known.epoch)
    database.add(known)
    database.close()
    database = Database(path)
    assert database.start("boot", 10.0).sessions == (known,), "it speaks what this one does"
    database.close()
    monkeypatch.setattr(database_module, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with pytest.raises(StateError, match=f"protocol version {PROTOCOL_VERSION}, this server"):
        Database(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    path.write_bytes(b"something else " * 100)
    with pytest.raises(StateError, match="cannot use"):
        Database(path)


def test_a_state_directory_is_one_processs(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nfsfuse_server.state.directory import StateDirectory\n"
        "directory = StateDirectory(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match="in use by another nfsfuse-server"):
            StateDirectory(tmp_path)
        other.kill()  # and its lock goes with it
    StateDirectory(tmp_path).close()
    StateDirectory(tmp_path).close()


def test_the_boot_id_is_the_kernels() -> None:
    assert len(boot_id()) == 36
