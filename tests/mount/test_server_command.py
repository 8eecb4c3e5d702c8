"""nfsfuse-server on the command line: what it prints, refuses, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from scripts.rig.rig import Failed, Rig


def refusal(rig: Rig, *arguments: str | Path) -> str:
    """The one line the server says when it does not start."""
    ended = rig.command("nfsfuse-server", *arguments)
    assert ended.status == 1, ended
    assert ended.output == ""
    assert ended.errors.startswith("nfsfuse-server: "), ended.errors
    assert ended.errors.count("\n") == 1, ended.errors
    return ended.errors


@pytest.mark.parametrize("command", ["nfsfuse", "nfsfuse-server"])
def test_help_and_version(rig: Rig, command: str) -> None:
    assert "usage:" in rig.command(command, "--help").succeeded().output
    assert rig.command(command, "--version").succeeded().output.startswith("nfsfuse ")


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_help_of_the_commands(rig: Rig, command: str) -> None:
    assert "MOUNTPOINT" in rig.command("nfsfuse", command, "--help").succeeded().output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--export"],
        ["--export", "/", "--nonsense"],
        ["--export", "/", "--listen", "nowhere"],
        ["--export", "/", "--listen", "unix:"],
        ["--export", "/", "--listen", "127.0.0.1:65536"],
        ["--export", "/", "--lease", "soon"],
    ],
)
def test_usage_errors_are_status_2(rig: Rig, arguments: list[str]) -> None:
    ended = rig.command("nfsfuse-server", *arguments)
    assert ended.status == 2, ended
    assert "usage:" in ended.errors
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_any_port_is_told_and_a_signal_ends_it_cleanly(rig: Rig, number: signal.Signals) -> None:
    server = rig.server(listen="127.0.0.1:0")
    host, _, port = server.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    mountpoint = rig.mount(server)
    (mountpoint / "file").write_text("over TCP")
    assert (server.export / "file").read_text() == "over TCP"
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert server.stop(number) == 0


def test_the_unix_socket_is_removed_at_the_end(rig: Rig) -> None:
    server = rig.server()
    socket = Path(server.address.removeprefix("unix:"))
    assert socket.is_socket()
    assert server.stop() == 0
    assert not socket.exists()


def test_no_such_export(rig: Rig) -> None:
    assert "no such directory" in refusal(rig, "--export", rig.directory / "missing")


def test_an_export_that_is_a_file(rig: Rig) -> None:
    (rig.directory / "file").touch()
    assert "not a directory" in refusal(rig, "--export", rig.directory / "file")


def test_the_state_directory_must_not_be_exported(rig: Rig) -> None:
    export = rig.directory / "export"
    export.mkdir()
    said = refusal(rig, "--export", export, "--state-dir", export / "state")
    assert "inside the export" in said
    assert not (export / "state").exists()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", None])
def test_an_address_in_use(rig: Rig, listen: str | None) -> None:
    server = rig.server(listen=listen)
    with pytest.raises(Failed, match=r"cannot listen on .*in use"):
        rig.server(listen=server.address)
    assert rig.mount(server).is_dir()


def test_the_socket_of_a_killed_server_is_no_address_in_use(rig: Rig) -> None:
    killed = rig.server()
    killed.kill()
    server = rig.server(listen=killed.address)
    assert rig.mount(server).is_dir()
