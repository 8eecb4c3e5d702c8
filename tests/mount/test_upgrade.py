"""Promise 13: an upgrade with open files, journal and sessions in place loses nothing, or says what to do."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.rig.processes import poll_until
from scripts.rig.rig import SERVER, Failed, Rig, Server
from tests.helpers.last_release import LastRelease, Unavailable, last_release

USER = 4242


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> LastRelease:
    try:
        return last_release(tmp_path_factory.mktemp("release") / "unpacked")
    except Unavailable as exc:
        pytest.skip(str(exc))


def state_of(server: Server) -> Path:
    return Path(server.arguments[server.arguments.index("--state-dir") + 1])


def making(directory: Path) -> subprocess.Popen[bytes]:
    """A program of USER's that makes the file ``made`` in *directory*, the way to which is not its own."""
    return subprocess.Popen([sys.executable, "-I", "-c", "open('made', 'x').close()"], user=USER, cwd=directory)


def mounted(rig: Rig, old: LastRelease) -> tuple[Server, Path]:
    """A server of the last release, which dies when it has made a file of USER's; and a mount, of it too."""
    server = rig.server(command=old.dying_server(USER))
    mount = rig.mount(server, command=old.client)
    (mount / "dir").mkdir()
    (mount / "dir").chmod(0o777)
    return server, mount


def died(server: Server) -> None:
    assert server.process.wait(30) == -signal.SIGKILL
    server.kill()  # closes what is left of it here


def test_what_the_last_release_has_open_is_left_to_it_and_then_goes_on(rig: Rig, old: LastRelease) -> None:
    server, mount = mounted(rig, old)
    file = (mount / "open").open("w+")
    file.write("written before")
    file.flush()
    program = making(mount / "dir")
    died(server)
    for _ in range(2):
        with pytest.raises(Failed) as caught:
            rig.restart(server, SERVER)
        assert "1 clients may hold files" in str(caught.value)
        assert "unmount them" in str(caught.value)
        assert "Traceback" not in str(caught.value)
    server = rig.restart(server, old.server)
    assert program.wait(60) == 0, "it was made once, and its maker only noticed a pause"
    file.write(", and after")
    file.close()
    assert rig.command("nfsfuse", "umount", mount).status == 0
    assert server.stop(signal.SIGTERM) == 0
    server = rig.restart(server, SERVER)
    new = rig.mount(server)
    assert (new / "open").read_text() == "written before, and after"
    assert (new / "dir" / "made").stat().st_uid == USER
    (new / "dir" / "more").write_text("more")
    assert (server.export / "dir" / "more").read_text() == "more"


def test_what_the_last_release_was_in_the_middle_of_is_finished(rig: Rig, old: LastRelease) -> None:
    """Its client will not come back: as if the server had died when it had just forgotten that."""
    server, mount = mounted(rig, old)
    program = making(mount / "dir")
    died(server)
    assert (server.export / "dir" / "made").stat().st_uid == 0
    with sqlite3.connect(state_of(server) / "sessions.sqlite") as database:
        database.execute("DELETE FROM sessions")
    database.close()
    server = rig.restart(server, SERVER)
    assert "Create of session" in server.log.read_text()
    assert "was under way: done" in server.log.read_text()
    assert (server.export / "dir" / "made").stat().st_uid == USER
    poll_until(lambda: "refused" in server.log.read_text(), 20, "its mount still asks")
    assert "upgrade the client" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    program.kill()
    program.wait()


def test_a_client_of_the_last_release_is_told_to_be_upgraded(rig: Rig, old: LastRelease) -> None:
    server = rig.server()
    ended = rig.command(*old.client, "mount", server.address, rig.mountpoint())
    assert ended.status == 1
    assert "upgrade the client" in ended.errors
    assert "Traceback" not in ended.errors
    assert server.process.poll() is None


def test_a_server_of_the_last_release_is_to_be_upgraded(rig: Rig, old: LastRelease) -> None:
    server = rig.server(command=old.server)
    ended = rig.command("nfsfuse", "mount", server.address, rig.mountpoint())
    assert ended.status == 1
    assert "upgrade whichever is the older" in ended.errors
    assert "the server speaks protocol version 1" in ended.errors


def test_the_last_release_refuses_the_state_of_this_one(rig: Rig, old: LastRelease) -> None:
    server = rig.server()
    mount = rig.mount(server)
    (mount / "file").write_text("content")
    server.kill()
    with pytest.raises(Failed, match="is of another version of nfsfuse-server"):
        rig.restart(server, old.server)
    rig.restart(server, SERVER)
    assert (mount / "file").read_text() == "content"
