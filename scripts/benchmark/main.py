"""scripts/bench: nfsfuse beside its peers and the local directory."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.benchmark import machine, peers, plot, references, report
from scripts.benchmark.data_works import DATA_WORKS
from scripts.benchmark.file_works import FILE_WORKS
from scripts.benchmark.ground import QUICK, Sizes, Work
from scripts.benchmark.project_works import PROJECT_WORKS
from scripts.benchmark.results import Results
from scripts.benchmark.rounds import measure
from scripts.benchmark.shared_works import SHARED_WORKS
from scripts.benchmark.systems import Local, Nfsfuse, System
from scripts.rig.rig import Failed, Rig

WORKS: Final = (*DATA_WORKS, *FILE_WORKS, *PROJECT_WORKS, *SHARED_WORKS)
SYSTEMS: Final[dict[str, type[System]]] = {
    system.name: system
    for system in (Nfsfuse, peers.Sshfs, peers.Gluster, references.FuseC, Local)
}


class Unusable(Exception):
    """What was asked for cannot be done; the text is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit status: 0 if everything could be measured on nfsfuse, whatever came out."""
    options = parser().parse_args(argv)
    # Also where a shell has started this in the background, and with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(options)
    except (Unusable, Failed) as exc:
        print(f"bench: error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted; everything is cleaned up", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Runs the same work on nfsfuse, on its peers, and in a local directory, all on this "
        "machine, in turn and in rounds, and prints medians, ratios, and which targets are met. Cold: by a "
        "client that has cached nothing, of data that the server has in memory. Needs root. fuse-c is "
        "libfuse's own passthrough_ll, in C and without a network: the least that FUSE itself costs.",
        epilog=f"works: {', '.join(work.name for work in WORKS)}",
    )
    result.add_argument("--rounds", type=_positive, default=3, help="how often everything is done (default: 3)")
    result.add_argument("--only", type=_words, metavar="WORK,...", help="these works or figures only")
    names = ",".join(SYSTEMS)
    result.add_argument(
        "--targets", type=_words, metavar="SYSTEM,...", help=f"of {names} (default: all that are installed)"
    )
    result.add_argument(
        "--before", metavar="COMMIT", help="another commit of this project in the same run, in pairs with ours"
    )
    result.add_argument("--quick", action="store_true", help="little work: shows that it runs, no more")
    packages = " ".join(peers.PACKAGES)
    result.add_argument("--install-peers", action="store_true", help=f"install {packages} first")
    result.add_argument("--dir", type=Path, help="make the exports in DIR (default: TMPDIR or /tmp)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    result.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to FILE")
    result.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (PNG; needs matplotlib)")
    return result


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def chosen_works(names: Sequence[str] | None) -> list[Work]:
    """The works with these names, or with figures of these names. Raises Unusable."""
    if names is None:
        return list(WORKS)
    known = {work.name for work in WORKS} | {figure.name for work in WORKS for figure in work.figures}
    if unknown := sorted(set(names) - known):
        raise Unusable(f"no such work: {', '.join(unknown)}")
    wanted = set(names)
    return [work for work in WORKS if wanted & {work.name, *(figure.name for figure in work.figures)}]


def chosen_systems(names: Sequence[str] | None) -> list[type[System]]:
    """The systems with these names, by default all that are installed. Raises Unusable."""
    if names is None:
        found = []
        for system in SYSTEMS.values():
            if lacking := system.lacking():
                print(f"bench: without {system.name}: {lacking}", file=sys.stderr)
            else:
                found.append(system)
        return found
    if unknown := sorted(set(names) - set(SYSTEMS)):
        raise Unusable(f"no such target: {', '.join(unknown)} (there are {', '.join(SYSTEMS)})")
    for name in names:
        if lacking := SYSTEMS[name].lacking():
            raise Unusable(f"{name}: {lacking}")
    return [system for name, system in SYSTEMS.items() if name in names]


def _run(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise Unusable("it mounts, and starts servers: run it as root")
    if options.plot and (lacking := plot.lacking()):
        raise Unusable(lacking)  # now, and not after an hour
    works = chosen_works(options.only)
    if options.install_peers:
        peers.install()
    systems = chosen_systems(options.targets)
    commit = ""
    if options.before:
        print(f"bench: getting {options.before} ready (a minute at first)", file=sys.stderr, flush=True)
        before = references.before(options.before)
        commit = before.commit
        systems.insert(1, before)
    results = Results(
        {figure.name: figure for work in works for figure in work.figures}, [system.name for system in systems]
    )
    about: dict[str, object] = {}
    interrupted = False
    try:
        with Rig(options.dir) as rig:
            rig.environment.pop("NFSFUSE_GUARD", None)  # of the tests, and slow
            rig.environment.pop("PYTHONPATH", None)  # another commit's programs would find this one's modules
            rig.environment.update(HOME=str(rig.directory), GIT_CONFIG_NOSYSTEM="1", LC_ALL="C")
            told = {"rounds": options.rounds, "quick": options.quick, "only": options.only}
            about = machine.describe(rig.directory, systems, told)
            print(machine.sentence(about), flush=True)
            sizes = QUICK if options.quick else Sizes()
            touched = machine.touch_memory(sizes.memory_bytes(len(systems)))
            print(f"bench: touched {touched >> 20:,} MiB of memory first", file=sys.stderr, flush=True)
            measure(rig, systems, works, sizes, options.rounds, results)
    except KeyboardInterrupt:
        if not results.values:
            raise
        interrupted = True  # half an hour of measurements is not thrown away
        print("\nbench: interrupted; what had been measured:", file=sys.stderr)
    _tell(results, about, options, commit)
    if interrupted:
        return 130
    return 1 if any(system == Nfsfuse.name for _, system in results.notes) else 0


def _tell(results: Results, about: dict[str, object], options: argparse.Namespace, commit: str) -> None:
    print(f"\n{report.text(results, commit)}\n\n{report.summary(results)}")
    if options.json:
        options.json.write_text(json.dumps(report.machine_readable(results, about), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(results, commit) + "\n")
    if options.plot and not plot.plot(results, options.plot):
        print("bench: no plot: one system alone has no ratios", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
