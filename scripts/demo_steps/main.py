"""scripts/demo: one server, two mounts, and ordinary programs at work in them."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple, NoReturn

from scripts.demo_steps.keep import keep
from scripts.demo_steps.screen import Screen
from scripts.rig.kernel import abort_below
from scripts.rig.rig import ROOT, Failed, Rig, Server


class Step(NamedTuple):
    """A row of the table: what it is called, its function in work.py, and how long it may take."""

    title: str
    function: str
    seconds_max: float


STEPS: Final = (
    Step("tar this Python's standard library", "pack", 120),
    Step("unpack it into mount 1", "unpack", 300),
    Step("compare with mount 2, byte for byte", "compare", 300),
    Step("compile a C program on mount 1, run it on both", "compile_and_run", 120),
    Step("mmap MAP_SHARED on one mount, then the other", "map_shared", 60),
    Step("write, mmap, append, lock: seen at once on the other", "at_once", 180),
    Step("SQLite database, made on 1, changed on 2", "sqlite", 120),
    Step("20,000 entries made on 1, listed on 2", "list_many", 300),
    Step("rename and unlink, seen on the other", "rename_and_unlink", 60),
    Step("sparse file of 4 TiB", "sparse", 60),
    Step("extended attribute", "extended_attribute", 60),
    Step("hard link", "hard_link", 60),
)


class Stopped(Exception):
    """A signal asked for the end; *number* is which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # a second Ctrl-C must not end the clean-up half-way
    raise Stopped(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status: 0 if everything held."""
    options = parser().parse_args(argv)
    screen = Screen()
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, _stop)
    kept = False
    rig = Rig(options.dir)
    try:
        server = start_server(rig, screen)
        mounts = rig.mount(server), rig.mount(server)
        for number, mount in enumerate(mounts, 1):
            screen.note(f"demo: mount {number} is {mount}")
        started = time.monotonic()
        screen.head()
        results = [run_step(step, rig, mounts, screen) for step in STEPS]
        summary = f"{sum(results)} of {len(results)} held, in {time.monotonic() - started:.1f} s"
        if options.keep:
            screen.note(f"\ndemo: {summary}")
            keep(rig, server, mounts, screen)
            kept = True
        else:
            results.append(finish(rig, server, mounts, screen))
            ending = "nothing is left behind" if results[-1] else "it did not end well"
            screen.note(f"\ndemo: {summary}; {ending}")
        return 0 if all(results) else 1
    except Stopped as exc:
        screen.note(f"\ndemo: stopped by {exc}; cleaning up")
        return 128 + exc.number
    except Failed as exc:
        screen.note(f"demo: error: {exc}")
        return 1
    finally:
        if not kept:
            rig.close()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Starts an nfsfuse server on a temporary export, mounts it twice, and lets ordinary "
        "programs work in both mounts. Prints what it did, what it saw, and how long it took. The exit "
        "status is 0 only if everything held; nothing is left behind, whatever happens.",
    )
    result.add_argument(
        "--keep", action="store_true", help="leave server and mounts up, and say how to use and stop them"
    )
    result.add_argument(
        "--dir", type=Path, metavar="DIR", help="make the temporary export in DIR (default: TMPDIR or /tmp)"
    )
    return result


def start_server(rig: Rig, screen: Screen) -> Server:
    """A server; without permanent handles if the filesystem below has none. Raises Failed."""
    try:
        server = rig.server()
    except Failed as exc:
        if "--volatile-handles" not in str(exc):
            raise
        screen.note(f"demo: {exc}\ndemo: doing without permanent handles here")
        server = rig.server(arguments=["--volatile-handles"])
    screen.note(f"demo: exporting {server.export} at {server.address}")
    return server


def run_step(step: Step, rig: Rig, mounts: tuple[Path, Path], screen: Screen) -> bool:
    """Run a step in a process of its own and print its row; whether it held."""
    screen.progress(step.title, "...")
    started = time.monotonic()
    words = [sys.executable, "-m", "scripts.demo_steps.work", step.function, str(rig.directory)]
    rig.deadline(step.seconds_max)  # the janitor aborts the mounts and then kills
    seen = "it was killed"
    with subprocess.Popen(
        [*words, *map(str, mounts)],
        cwd=ROOT,
        env=rig.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip())
                screen.progress(step.title, lines[-1])
            status = process.wait()
            seen = "\n".join(lines[-1:] if status == 0 else lines[-12:])
        except BaseException:
            abort_below(rig.directory)  # so that it can die
            process.kill()
            raise
    rig.deadline(None)
    screen.row(step.title, status == 0, time.monotonic() - started, seen or f"exit status {status}")
    return status == 0


def finish(rig: Rig, server: Server, mounts: Sequence[Path], screen: Screen) -> bool:
    """Unmount and stop in order; whether nothing was left to be swept away."""
    started = time.monotonic()
    screen.progress("unmount, stop the server", "...")
    troubles = []
    for mount in mounts:
        unmounted = rig.command("nfsfuse", "umount", mount)
        if unmounted.status != 0:
            troubles.append(unmounted.errors.strip())
    status = server.stop()
    if status != 0:
        troubles.append(f"the server ended with status {status}: {server.log.read_text()}")
    troubles += rig.close()
    held = not troubles
    seen = "\n".join(troubles) or "no mount, process or file is left"
    screen.row("unmount, stop the server", held, time.monotonic() - started, seen)
    return held


if __name__ == "__main__":
    sys.exit(main())
