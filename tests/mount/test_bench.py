"""scripts/bench from its command line to its files, with little work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmark import references
from scripts.benchmark.peers import Peer
from scripts.benchmark.references import FuseC
from scripts.benchmark.systems import Nfsfuse
from scripts.rig.kernel import fuse_mounts_below
from scripts.rig.processes import poll_until
from scripts.rig.rig import ROOT, Failed, Rig
from scripts.rig.sweep import has_ended

ONLY = "seq-write,seq-read,mmap-scan,create,walk,clients-2"
COMMAND = [sys.executable, "-m", "scripts.benchmark.main", "--quick", "--targets", "nfsfuse,local"]


def test_a_quick_run_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    ran = subprocess.run(
        [*COMMAND, "--rounds", "2", "--only", ONLY, "--dir", str(tmp_path), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    expected = {"seq-write", "seq-read-warm", "mmap-scan-warm", "create", "walk-cold", "clients-2-cpu"}
    assert expected <= set(figures)
    for name, figure in figures.items():
        for system in ("nfsfuse", "local"):
            measured = figure["systems"][system]
            assert len(measured["rounds"]) == 2, (name, system, measured["note"])
            if not name.endswith("-cpu"):
                assert min(measured["rounds"]) > 0
    assert figures["clients-2-cpu"]["systems"]["nfsfuse"]["median"] > 0
    assert "sequential write + fsync" in ran.stdout
    assert (tmp_path / "out.md").read_text().startswith("| work | unit | nfsfuse | local |")
    assert "round 1/2: " in ran.stderr
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.md"]


def test_an_interrupt_after_a_while_still_tells_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    out = tmp_path / "out.json"
    command = [*COMMAND, "--rounds", "1000", "--only", "stat", "--dir", str(tmp_path / "exports")]
    with subprocess.Popen(
        [*command, "--json", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        second = re.compile(r"round-([2-9])")
        poll_until(lambda: any(map(second.fullmatch, _rounds(tmp_path))), 120, "the second round")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert json.loads(out.read_text())["figures"]["stat"]["systems"]["nfsfuse"]["median"] > 0
    assert not os.listdir(tmp_path / "exports")


def _rounds(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("exports/nfsfuse-*/round-*")]


def test_an_interrupt_ends_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [*COMMAND, "--rounds", "1000", "--only", "create,walk", "--dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        poll_until(lambda: bool(fuse_mounts_below(tmp_path)), 60, "it mounts")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert b"interrupted" in errors
    assert not fuse_mounts_below(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_fresh_client_has_a_daemon_of_its_own_which_ends_with_it(rig: Rig) -> None:
    with Nfsfuse(rig, rig.directory / "system") as system:
        before = system.cost()
        writer = system.mount()
        (writer / "file").write_text("written")
        with system.fresh() as client:
            assert (client / "file").read_text() == "written"
            assert client != writer
        assert not fuse_mounts_below(client)
        after = system.cost()
        assert after.server > before.server
        assert after.clients > before.clients
    assert not fuse_mounts_below(rig.directory)


def test_the_least_that_fuse_costs_is_measured_beside(rig: Rig) -> None:
    if lacking := FuseC.lacking():
        pytest.skip(lacking)
    with FuseC(rig, rig.directory / "system") as system, system.fresh() as client:
        (client / "file").write_text("written")
        assert (system.export / "file").read_text() == "written"
        assert system.cost().server == 0
        assert system.cost().clients > 0
    assert not fuse_mounts_below(rig.directory)


def test_another_commit_that_is_none_is_refused() -> None:
    with pytest.raises(Failed, match="no such commit: nonsense"):
        references.before("nonsense")


class Sleeper(Peer):
    """A peer whose server never listens and ends at once."""

    name = "sleeper"
    programs = ("true",)

    @classmethod
    def version(cls) -> str:
        return "1"

    def _server_command(self) -> list[str]:
        return ["false"]


def test_a_peer_that_does_not_start_says_so_and_leaves_nothing(rig: Rig) -> None:
    system = Sleeper(rig, rig.directory / "system")
    with pytest.raises(Failed, match="sleeper does not serve"), system:
        pass
    assert system._server is not None
    assert has_ended(system._server.pid)
