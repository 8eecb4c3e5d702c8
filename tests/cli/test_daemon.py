"""Leaving for the background, and the log: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = """
import os, sys
from nfsfuse.cli.daemon import in_background
parent = os.getpid(), os.getsid(0)
def run(launch):
    assert os.getsid(0) != parent[1] and os.getpid() != os.getsid(0)
    assert os.getcwd() == "/"
    print("this goes nowhere")
    {run}
sys.exit(in_background(run))
"""


def background(run: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(run=run)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


@pytest.mark.parametrize(
    ("run", "status", "told"),
    [
        ("launch.ready(); return 0", 0, ""),
        ("launch.ready(); return 1", 0, ""),
        ("launch.failed('no such host'); return 1", 1, "nfsfuse: no such host\n"),
        ("launch.failed(''); return 1", 1, "nfsfuse: failed\n"),
        ("launch.failed('the first'); launch.failed('the second'); return 1", 1, "nfsfuse: the first\n"),
    ],
)
def test_the_command_waits_and_is_told(run: str, status: int, told: str) -> None:
    result = background(run)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", told)


@pytest.mark.parametrize("run", ["os._exit(0)", "os.kill(os.getpid(), 9)", "raise RuntimeError", "return 0"])
def test_a_daemon_that_dies_before_it_is_ready_is_a_failure(run: str) -> None:
    result = background(run)
    assert result.returncode == 1
    assert "died before the mount was usable" in result.stderr


def test_in_the_foreground_failures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from nfsfuse.cli.daemon import Launch

    Launch(None).ready()
    Launch(None).failed("why")
    assert capsys.readouterr().err == "nfsfuse: why\n"


LOGGING = """
import logging, sys
from nfsfuse.cli import logs
logs.set_up(sys.argv[1], "warning")
logging.getLogger("nfsfuse.x").info("too quiet")
logging.getLogger("nfsfuse.x").warning("caf\\u00e9")
"""


@pytest.mark.parametrize("target", ["stderr", "file"])
def test_the_log_is_one_line_an_event(target: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOGGING, "stderr" if target == "stderr" else str(path)],
        capture_output=True, cwd=ROOT, timeout=60, env={**os.environ, "PYTHONUTF8": "1"}, check=True,
    )  # fmt: skip
    written = result.stderr if target == "stderr" else path.read_bytes()
    (line,) = written.decode().splitlines()
    assert line.endswith(" WARNING caf\u00e9")


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    from nfsfuse.cli import logs

    with pytest.raises(OSError, match="No such file"):
        logs.set_up(str(tmp_path / "no" / "such"), "info")


UNREAD = """
import logging, sys
from nfsfuse.cli import logs
logs.set_up("stderr", "info")
logs.write_in_a_thread()
for number in range(logs.LINES_MAX + 5000):
    logging.getLogger().info("%d %s", number, "x" * 100)
print("done", flush=True)
sys.stdin.readline()
logs.flush()
"""


def test_nobody_waits_for_who_reads_the_log() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        _, written = process.communicate("\n", timeout=60)
    lines = written.splitlines()
    assert " INFO 0 xxx" in lines[0]
    (lost,) = (line for line in lines if "lines of the log are lost here" in line)
    assert len(lines) - 1 + int(lost.split(" WARNING ")[1].split()[0]) == 15_000
