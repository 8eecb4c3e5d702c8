"""Medians, ratios, goals and tables of scripts/bench, of values that are known."""

from __future__ import annotations

import json

import pytest

from scripts.benchmark.figures import Cost, Measured, Value, duration, microseconds_each, per_second, rate
from scripts.benchmark.goals import GOALS, HALVED, Against, Goal, judge
from scripts.benchmark.main import WORKS
from scripts.benchmark.report import (
    machine_readable,
    markdown,
    met,
    number,
    pair_rows,
    processor_rows,
    rows,
    summary,
    text,
)
from scripts.benchmark.results import Results

WRITE = rate("seq-write", "sequential write + fsync", "MiB/s")
APPEND = duration("append", "100 B append", "us")
STAT = duration("stat", "stat, hot", "us")
SYSTEMS = ("nfsfuse", "sshfs", "glusterfs", "local")


def results(**values: tuple[float, ...]) -> Results:
    """Each of SYSTEMS with the values of WRITE, of APPEND and of STAT; None leaves one out."""
    made = Results({figure.name: figure for figure in (WRITE, APPEND, STAT)}, SYSTEMS)
    for system, (write, append, stat) in values.items():
        made.add(1, system, (WRITE, APPEND, STAT), (Value(write), Value(append), Value(stat)))
    return made


KNOWN = results(
    nfsfuse=(300.0, 60.0, 2.0), sshfs=(100.0, 57.0, 2.1), glusterfs=(200.0, 80.0, 2.2), local=(900.0, 3.0, 1.0)
)


def test_the_median_is_of_the_rounds():
    made = results(nfsfuse=(10.0, 1.0, 1.0))
    for number_of_round, value in ((2, 1000.0), (3, 20.0)):
        made.add(number_of_round, "nfsfuse", (WRITE,), (Value(value),))
    assert made.median("seq-write", "nfsfuse") == 20.0
    assert made.median("seq-write", "sshfs") is None
    assert made.spread("seq-write", "nfsfuse") == 49.5


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
    assert {goal.figure for goal in HALVED} <= figures


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
    assert head == ["work", "unit", *SYSTEMS, "spread", "to best peer", "to local", "target", "met"]
    assert body[0][:9] == [WRITE.title, "MiB/s", "300", "100", "200", "900", "0 %", "1.50 x", "0.33 x"]
    assert body[0][9:] == [">= 2 x the best peer (400)", "NO"]
    assert body[1][9:] == ["<= 1.2 x the best peer (68.4)", "yes"]


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
    assert figure["systems"]["sshfs"] == {"median": 57.0, "rounds": [57.0], "cost_us": None, "note": None}
    assert figure["of_before"] == {"elapsed": None, "processor": None}
    assert figure["better"] == "less"
    assert [goal["met"] for goal in figure["goals"]] == [True]


def paired() -> Results:
    """Three rounds of ours and three of another commit's, of which one round is missing on each side."""
    made = Results({WRITE.name: WRITE, APPEND.name: APPEND}, ("nfsfuse", "before", "local"))
    rounds = ((1, 200.0, 100.0), (2, None, 100.0), (3, 100.0, None), (4, 400.0, 100.0))
    for number_of_round, ours, before in rounds:
        for system, amount in (("nfsfuse", ours), ("before", before)):
            if amount is not None:
                value = Value(amount, Cost(1.0, amount / 100))
                made.add(number_of_round, system, (WRITE, APPEND), (value, value))
    return made


def test_pairs_are_of_one_round_and_less_is_better_whatever_the_figure():
    elapsed = paired().elapsed("seq-write", "before")
    assert elapsed is not None
    assert (elapsed.median, elapsed.least, elapsed.most, elapsed.rounds) == (0.375, 0.25, 0.5, 2)
    longer = paired().elapsed("append", "before")
    assert longer is not None
    assert longer.median == 3.0
    processor = paired().processor("append", "before")
    assert processor is not None
    assert (processor.least, processor.most) == (1.5, 2.5)
    assert paired().elapsed("append", "local") is None


def test_processor_time_is_shown_for_both_sides():
    head, *body = processor_rows(paired())
    assert head[1:] == ["nfsfuse", "before"]
    assert body[0] == [WRITE.title, "1.00 + 2.00", "1.00 + 1.00"]
    assert processor_rows(KNOWN) == []


def test_the_pairs_goals_are_those_of_one_commit():
    assert pair_rows(KNOWN, "") == []
    _, write, append = pair_rows(paired(), "4580535aaaaa")
    assert write[1:] == ["2", "0.38 (0.25 to 0.50)", "2.00 (1.50 to 2.50)", "0.70, 0.60", "NO"]
    assert append[-2:] == ["0.50, 0.40", "NO"]
    assert [row[-1] for row in pair_rows(paired(), "1234567")[1:]] == ["", ""]
    assert "of what 4580535aaaaa takes" in text(paired(), "4580535aaaaa")


def test_what_one_cost_is_told_in_microseconds():
    measured = Measured({"seconds": 2.0, "count": 1000.0, "bytes": 4.0 * (1 << 20)}, Cost(0.5, 1.0))
    assert microseconds_each(measured) == Value(2000.0, Cost(500.0, 1000.0))
    assert per_second(measured, "bytes", 1 << 20) == Value(2.0, Cost(125_000.0, 250_000.0))
