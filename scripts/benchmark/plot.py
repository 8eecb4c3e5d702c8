"""The ratios as a picture: how many times better than the best peer, and than the local directory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from scripts.benchmark.goals import Against, verdicts
from scripts.benchmark.results import LOCAL, Results

LACKING: Final = (
    "a plot needs matplotlib, an optional extra: .venv/bin/python -m pip install --editable '.[bench]'"
)


def lacking() -> str | None:
    """Why no plot can be made; None if one can."""
    return LACKING if find_spec("matplotlib") is None else None


def plot(results: Results, path: Path) -> bool:
    """Draw to *path* (PNG, or what else its suffix says); False if there is no ratio to draw."""
    from matplotlib.figure import Figure as Canvas  # an optional extra

    shown = []
    for name, figure in results.figures.items():
        to_peer = results.ratio(name, results.best_peer(name))
        to_local = results.ratio(name, results.median(name, LOCAL))
        if to_peer is not None or to_local is not None:
            shown.append((name, figure.title, to_peer, to_local))
    if not shown:
        return False
    canvas = Canvas(figsize=(10, 1.5 + 0.42 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    for row, (name, _, to_peer, to_local) in enumerate(shown):
        for offset, value, colour in ((-0.2, to_peer, "tab:blue"), (0.2, to_local, "silver")):
            if value is not None:
                axes.barh(row + offset, value - 1, height=0.38, left=1, color=colour)
        for verdict in verdicts(results, name):
            if verdict.goal.against is Against.BEST_PEER:
                axes.plot([verdict.goal.times] * 2, [row - 0.42, row + 0.02], color="tab:red", linewidth=2)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [title for _, title, _, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("times better (right of 1) or worse: blue to the best peer, grey to local; red: the target")
    axes.grid(axis="x", which="both", alpha=0.3)
    canvas.savefig(path, dpi=110)
    return True
