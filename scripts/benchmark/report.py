"""The results for people, as a table of text or Markdown, and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scripts.benchmark.goals import Verdict, verdicts
from scripts.benchmark.results import LOCAL, OURS, Results

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
    """The table, its head first."""
    head = ["work", "unit", *results.systems, "to best peer", "to local", "target", "met"]
    table = [head]
    for name, figure in results.figures.items():
        found = verdicts(results, name)
        table.append(
            [
                figure.title,
                figure.unit,
                *(number(results.median(name, system)) for system in results.systems),
                ratio(results.ratio(name, results.best_peer(name))),
                ratio(results.ratio(name, results.median(name, LOCAL))),
                _target(found),
                met(found),
            ]
        )
    return table


def text(results: Results) -> str:
    """The table in columns, then what could not be measured."""
    table = rows(results)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = {0, 1, len(widths) - 2, len(widths) - 1}
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines + _notes(results))


def markdown(results: Results) -> str:
    """The table for docs/performance.md."""
    head, *body = rows(results)
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 4) + ["---"] * 2)]
    lines += map(_line, body)
    return "\n".join(lines + _notes(results))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(results: Results) -> list[str]:
    """One line for each reason, with everything it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (figure, system), why in results.notes.items():
        rounds = len(results.values.get((figure, system), []))
        said = f"{why} (measured in {rounds} rounds)" if rounds else why
        reasons.setdefault((system, said), []).append(figure)
    notes = [f"* {system}, {', '.join(figures)}: {why}" for (system, why), figures in reasons.items()]
    return ["", *notes] if notes else []


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
                        "rounds": results.values.get((name, system), []),
                        "note": results.notes.get((name, system)),
                    }
                    for system in results.systems
                },
                "ratio_to_best_peer": results.ratio(name, results.best_peer(name)),
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
