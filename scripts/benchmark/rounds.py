"""The run: every work on every system in turn, in rounds, each on exports made anew."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from scripts.benchmark.ground import Cannot, Ground, NotMeasured, Sizes, Work
from scripts.benchmark.progress import Progress
from scripts.benchmark.results import Results
from scripts.benchmark.systems import System
from scripts.proof.programs import Programs
from scripts.rig.processes import TimedOut
from scripts.rig.rig import Failed, Rig
from scripts.rig.sweep import remove_tree


def measure(
    rig: Rig,
    systems: Sequence[type[System]],
    works: Sequence[Work],
    sizes: Sizes,
    rounds: int,
    results: Results,
) -> None:
    """Fill *results*. All systems are up at once and idle but one, so that their turns lie close together:
    what else the machine does meanwhile then hits all alike. Who goes first changes from round to round.

    A system that fails at a work is noted, and measured at the others; if it hangs or breaks, it is left out
    until the next round."""
    programs = Programs(rig)
    scratch = rig.directory / "scratch"
    scratch.mkdir()
    progress = Progress([(work.name, system.name) for work in works for system in systems], rounds)
    for number in range(1, rounds + 1):
        first = number % len(systems)
        order = [*systems[first:], *systems[:first]]
        directory = rig.directory / f"round-{number}"
        with ExitStack() as started:
            grounds: dict[str, Ground] = {}
            for kind in systems:
                system = started.enter_context(kind(rig, directory / kind.name))
                grounds[kind.name] = Ground(system, programs, sizes, scratch)
            for work in works:
                for kind in order:
                    progress.begin(number, (work.name, kind.name))
                    began = time.monotonic()
                    _measure(number, work, kind.name, grounds, results)
                    progress.end((work.name, kind.name), time.monotonic() - began)
        remove_tree(directory)
    progress.close()


def _measure(
    number: int, work: Work, system: str, grounds: dict[str, Ground], results: Results
) -> None:
    ground = grounds.get(system)
    if ground is None or (work.figures[0].name, system) in results.impossible:
        return  # it broke at a work before
    try:
        values = work.measure(ground)
    except Cannot as exc:
        results.note(system, work.figures, str(exc))
        results.impossible |= {(figure.name, system) for figure in work.figures}
    except NotMeasured as exc:
        results.note(system, work.figures, str(exc))
    except (TimedOut, Failed, OSError) as exc:
        first, *_ = str(exc).splitlines() or [type(exc).__name__]
        results.note(system, work.figures, f"broke: {first}")
        del grounds[system]
    else:
        results.add(number, system, work.figures, values)
