"""Medians, ratios, goals and tables of scripts/bench, of values that are known."""

from __future__ import annotations

import json

import pytest

from scripts.benchmark.figures import duration, rate
from scripts.benchmark.goals import GOALS, Against, Goal, judge
from scripts.benchmark.main import WORKS
from scripts.benchmark.report import machine_readable, markdown, met, number, rows, summary, text
from scripts.benchmark.results import Results

WRITE = rate("seq-write", "sequential write + fsync", "MiB/s")
APPEND = duration("append", "100 B append", "us")
STAT = duration("stat", "stat, hot", "us")
SYSTEMS = ("nfsfuse", "sshfs", "glusterfs", "local")


def results(**values: tuple[float, ...]) -> Results:
    """Each of SYSTEMS with the values of WRITE, of APPEND and of STAT; None leaves one out."""
    made = Results({figure.name: figure for figure in (WRITE, APPEND, STAT)}, SYSTEMS)
    for system, (write, append, stat) in values.items():
        made.add(system, (WRITE, APPEND, STAT), (write, append, stat))
    return made


KNOWN = results(
    nfsfuse=(300.0, 60.0, 2.0), sshfs=(100.0, 57.0, 2.1), glusterfs=(200.0, 80.0, 2.2), local=(900.0, 3.0, 1.0)
)


def test_the_median_is_of_the_rounds():
    made = results(nfsfuse=(10.0, 1.0, 1.0))
    for value in (1000.0, 20.0):
        made.add("nfsfuse", (WRITE,), (value,))
    assert made.median("seq-write", "nfsfuse") == 20.0
    assert made.median("seq-write", "sshfs") is None
    assert made.spread("seq-write", "nfsfuse") == 100.0


def test_the_best_peer_is_the_fastest_by_rate_and_the_shortest_by_duration():
    assert KNOWN.best_peer("seq-write") == 200.0
    assert KNOWN.best_peer("append") == 57.0
    assert results(nfsfuse=(1.0, 1.0, 1.0), local=(1.0, 1.0, 1.0)).best_peer("append") is None


def test_a_ratio_above_one_is_better_whatever_the_figure():
    assert KNOWN.ratio("seq-write", 200.0) == 1.5
    assert KNOWN.ratio("append", 57.0) == pytest.approx(0.95)
    assert KNOWN.ratio("append", None) is None


@pytest.mark.parametrize(
    ("goal", "needed", "expected"),
    [
        (Goal("seq-write", Against.BEST_PEER, 1.5), 300.0, True),
        (Goal("seq-write", Against.BEST_PEER, 2.0), 400.0, False),
        (Goal("append", Against.BEST_PEER, 1.0), 57.0, False),
        (Goal("append", Against.BEST_PEER, 1 / 1.2), 68.4, True),
        (Goal("stat", Against.LOCAL, 1 / 2), 2.0, True),
        (Goal("stat", Against.LOCAL, 1 / 1.5), 1.5, False),
        (Goal("append", Against.NUMBER, number=59.0), 59.0, False),
        (Goal("append", Against.OWN, 1 / 30, other="stat"), 60.0, True),
    ],
)
def test_a_goal_is_judged(goal: Goal, needed: float, expected: bool):
    verdict = judge(goal, KNOWN)
    assert verdict.needed == pytest.approx(needed)
    assert verdict.met is expected


def test_a_goal_without_anything_to_compare_with_is_not_judged():
    alone = results(nfsfuse=(1.0, 1.0, 1.0))
    verdict = judge(Goal("seq-write", Against.BEST_PEER, 2.0), alone)
    assert (verdict.needed, verdict.met) == (None, None)
    assert met([verdict]) == "-"
    assert met([]) == ""


def test_every_goal_is_about_a_figure_that_is_measured():
    figures = {figure.name for work in WORKS for figure in work.figures}
    assert {goal.figure for goal in GOALS} | {goal.other for goal in GOALS if goal.other} <= figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (12345.6, "12,346"),
        (100.4, "100"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.012345, "0.012"),
        (0.0, "0"),
    ],
)
def test_a_number_has_the_digits_that_mean_something(value: float | None, shown: str):
    assert number(value) == shown


def test_the_table_has_a_row_for_each_figure_and_a_column_for_each_system():
    head, *body = rows(KNOWN)
    assert head == ["work", "unit", *SYSTEMS, "to best peer", "to local", "target", "met"]
    assert body[0][:8] == [WRITE.title, "MiB/s", "300", "100", "200", "900", "1.50 x", "0.33 x"]
    assert body[0][8:] == [">= 2 x the best peer (400)", "NO"]
    assert body[1][8:] == ["<= 1.2 x the best peer (68.4)", "yes"]


def test_what_could_not_be_measured_is_said_below_the_table():
    made = results(nfsfuse=(1.0, 1.0, 1.0))
    made.note("sshfs", (WRITE, APPEND), "it broke")
    made.note("nfsfuse", (STAT,), "late")
    for shown in (text(made), markdown(made)):
        assert "* sshfs, seq-write, append: it broke" in shown
        assert "* nfsfuse, stat: late (measured in 1 rounds)" in shown


def test_the_summary_counts_and_names():
    assert summary(KNOWN).startswith("1 of 3 targets met; missed: seq-write (")
    assert "3 could not be judged" not in summary(KNOWN)
    alone = results(nfsfuse=(1.0, 1.0, 1.0))
    assert summary(alone) == "0 of 0 targets met, 3 could not be judged"


def test_what_is_for_machines_has_every_round():
    told = json.loads(json.dumps(machine_readable(KNOWN, {"kernel": "6"})))
    figure = told["figures"]["append"]
    assert figure["systems"]["sshfs"] == {"median": 57.0, "rounds": [57.0], "note": None}
    assert figure["better"] == "less"
    assert [goal["met"] for goal in figure["goals"]] == [True]
