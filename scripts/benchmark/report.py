"""The results for people, as a table of text or Markdown, and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scripts.benchmark.figures import Cost
from scripts.benchmark.goals import HALVED, HALVED_SINCE, Halved, Verdict, verdicts
from scripts.benchmark.results import BEFORE, LOCAL, OURS, Pairs, Results

MISSING: Final = "-"


def number(value: float | None) -> str:
    """*value* with three digits that mean something."""
    if value is None:
        return MISSING
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def ratio(value: float | None) -> str:
    """How many times better; below 1 it is worse."""
    return MISSING if value is None else f"{number(value)} x"


def percent(value: float | None) -> str:
    """A part of one."""
    return MISSING if value is None else f"{value * 100:.0f} %"


def cost(value: Cost | None) -> str:
    """Of the server and of the clients."""
    return MISSING if value is None else f"{number(value.server)} + {number(value.clients)}"


def pairs(value: Pairs | None) -> str:
    """The middle, and how far it goes."""
    return MISSING if value is None else f"{value.median:.2f} ({value.least:.2f} to {value.most:.2f})"


def met(found: list[Verdict]) -> str:
    """Whether all of a figure's goals are met."""
    judged = [verdict.met for verdict in found if verdict.met is not None]
    if not judged:
        return MISSING if found else ""
    return "yes" if all(judged) else "NO"


def _target(found: list[Verdict]) -> str:
    parts = []
    for verdict in found:
        needed = "" if verdict.needed is None else f" ({number(verdict.needed)})"
        parts.append(verdict.goal.words + needed)
    return "; ".join(parts)


def rows(results: Results) -> list[list[str]]:
    """The table of medians, its head first. *spread*: how far our own rounds are apart."""
    head = ["work", "unit", *results.systems, "spread", "to best peer", "to local", "target", "met"]
    table = [head]
    for name, figure in results.figures.items():
        found = verdicts(results, name)
        table.append(
            [
                figure.title,
                figure.unit,
                *(number(results.median(name, system)) for system in results.systems),
                percent(results.spread(name, OURS)),
                ratio(results.ratio(name, results.best_peer(name))),
                ratio(results.ratio(name, results.median(name, LOCAL))),
                _target(found),
                met(found),
            ]
        )
    return table


def processor_rows(results: Results) -> list[list[str]]:
    """Microseconds of processor time for one file, MiB or operation, server + clients; empty if nobody's was
    looked at."""
    systems = [system for system in results.systems if system != LOCAL]
    table = [["processor time, us each: server + clients", *systems]]
    for name, figure in results.figures.items():
        costs = [results.cost(name, system) for system in systems]
        if any(costs):
            table.append([figure.title, *map(cost, costs)])
    return table if len(table) > 1 else []


def pair_rows(results: Results, commit: str) -> list[list[str]]:
    """Ours beside another commit's, round by round; empty if there is none."""
    if BEFORE not in results.systems:
        return []
    goals = {goal.figure: goal for goal in HALVED} if commit.startswith(HALVED_SINCE) else {}
    table = [[f"of what {commit} takes", "rounds", "elapsed", "processor time", "target", "met"]]
    for name, figure in results.figures.items():
        elapsed, processor = results.elapsed(name, BEFORE), results.processor(name, BEFORE)
        if elapsed is not None:
            goal = goals.get(name)
            shown = "" if goal is None else f"{goal.elapsed:.2f}, {goal.processor:.2f}"
            judged = "" if goal is None else _halved(goal, elapsed, processor)
            table.append([figure.title, str(elapsed.rounds), pairs(elapsed), pairs(processor), shown, judged])
    return table


def _halved(goal: Halved, elapsed: Pairs, processor: Pairs | None) -> str:
    if processor is None:
        return MISSING
    return "yes" if elapsed.median <= goal.elapsed and processor.median <= goal.processor else "NO"


def _tables(results: Results, commit: str) -> list[tuple[list[list[str]], set[int]]]:
    """All tables that have rows, and which columns of each are words (counted from the end if negative)."""
    found = [
        (rows(results), {0, 1, -2, -1}),
        (processor_rows(results), {0}),
        (pair_rows(results, commit), {0, -1}),
    ]
    return [(table, words) for table, words in found if table]


def text(results: Results, commit: str = "") -> str:
    """The tables in columns, then what could not be measured. *commit* is what `BEFORE` is."""
    shown = (_columns(table, words) for table, words in _tables(results, commit))
    return "\n\n".join(shown) + "\n".join(_notes(results))


def _columns(table: list[list[str]], words: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = {index % len(widths) for index in words}
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown(results: Results, commit: str = "") -> str:
    """The tables for docs/performance.md. *commit* is what `BEFORE` is."""
    shown = []
    for table, words in _tables(results, commit):
        head, *body = table
        left = {index % len(head) for index in words}
        rule = ["---" if index in left else "---:" for index in range(len(head))]
        shown.append("\n".join([_line(head), _line(rule), *map(_line, body)]))
    return "\n\n".join(shown) + "\n".join(_notes(results))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(results: Results) -> list[str]:
    """One line for each reason, with everything it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (figure, system), why in results.notes.items():
        rounds = len(results.values.get((figure, system), ()))
        said = f"{why} (measured in {rounds} rounds)" if rounds else why
        reasons.setdefault((system, said), []).append(figure)
    notes = [f"* {system}, {', '.join(figures)}: {why}" for (system, why), figures in reasons.items()]
    return ["", "", *notes] if notes else []


def summary(results: Results) -> str:
    """How many goals are met, and which are not."""
    found = [verdict for name in results.figures for verdict in verdicts(results, name)]
    judged = [verdict for verdict in found if verdict.met is not None]
    missed = [f"{verdict.goal.figure} ({verdict.goal.words})" for verdict in judged if not verdict.met]
    line = f"{len(judged) - len(missed)} of {len(judged)} targets met"
    if len(found) > len(judged):
        line += f", {len(found) - len(judged)} could not be judged"
    return line + (f"; missed: {', '.join(missed)}" if missed else "")


def machine_readable(results: Results, about: Mapping[str, object]) -> dict[str, object]:
    """Everything, for `--json`."""
    return {
        "about": dict(about),
        "figures": {
            name: {
                "title": figure.title,
                "unit": figure.unit,
                "better": figure.better.value,
                "systems": {
                    system: {
                        "median": results.median(name, system),
                        "rounds": results.amounts(name, system),
                        "cost_us": _parts(results.cost(name, system)),
                        "note": results.notes.get((name, system)),
                    }
                    for system in results.systems
                },
                "ratio_to_best_peer": results.ratio(name, results.best_peer(name)),
                "of_before": {
                    "elapsed": _span(results.elapsed(name, BEFORE)),
                    "processor": _span(results.processor(name, BEFORE)),
                },
                "ratio_to_local": results.ratio(name, results.median(name, LOCAL)),
                "goals": [
                    {"words": verdict.goal.words, "needed": verdict.needed, "met": verdict.met}
                    for verdict in verdicts(results, name)
                ],
            }
            for name, figure in results.figures.items()
        },
        "ours": OURS,
    }


def _parts(value: Cost | None) -> dict[str, float] | None:
    return None if value is None else {"server": value.server, "clients": value.clients}


def _span(value: Pairs | None) -> list[float] | None:
    return None if value is None else [value.median, value.least, value.most]
