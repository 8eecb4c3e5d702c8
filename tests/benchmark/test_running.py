"""How scripts/bench runs: its command line, its progress, and what becomes of a system that fails."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from scripts.benchmark import main, rounds
from scripts.benchmark.figures import Value, per_second, rate
from scripts.benchmark.ground import QUICK, Cannot, Ground, NotMeasured, Work
from scripts.benchmark.peers import Gluster
from scripts.benchmark.progress import Progress
from scripts.benchmark.results import Results
from scripts.benchmark.systems import Local
from scripts.rig.processes import TimedOut
from scripts.rig.rig import Rig


def test_works_are_chosen_by_their_names_or_by_those_of_their_figures():
    assert [work.name for work in main.chosen_works(["stat", "walk-warm"])] == ["walk", "stat"]
    assert main.chosen_works(None) == list(main.WORKS)
    with pytest.raises(main.Unusable, match="no such work: nonsense"):
        main.chosen_works(["stat", "nonsense"])


def test_systems_are_chosen_by_their_names():
    assert [system.name for system in main.chosen_systems(["local", "nfsfuse"])] == ["nfsfuse", "local"]
    with pytest.raises(main.Unusable, match="no such target: nfs"):
        main.chosen_systems(["nfs"])


def test_a_peer_that_is_not_installed_is_left_out_or_asked_for_in_vain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(Gluster, "programs", ("no-such-program",))
    assert Gluster not in main.chosen_systems(None)
    assert "without glusterfs: no-such-program not installed" in capsys.readouterr().err
    with pytest.raises(main.Unusable, match="glusterfs: no-such-program not installed"):
        main.chosen_systems(["glusterfs"])


def test_all_names_are_different():
    figures = [figure.name for work in main.WORKS for figure in work.figures]
    assert len(set(figures)) == len(figures)
    assert len({work.name for work in main.WORKS}) == len(main.WORKS)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "x"], ["--nonsense"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]):
    with pytest.raises(SystemExit) as refused:
        main.parser().parse_args(arguments)
    assert refused.value.code == 2


def test_progress_says_what_is_done_and_how_long_it_will_take():
    output = io.StringIO()
    steps = [("write", "one"), ("write", "two")]
    progress = Progress(steps, 2, output)
    assert progress.seconds_left() is None
    progress.begin(1, steps[0])
    progress.end(steps[0], 100.0)
    assert progress.seconds_left() == 300.0  # the other one is taken for as long
    progress.end(steps[1], 20.0)
    assert progress.seconds_left() == 120.0
    progress.end(steps[0], 50.0)
    assert progress.seconds_left() == 20.0
    assert output.getvalue() == "round 1/2: write on one (step 1 of 4)\n"


def amounts(results: Results) -> dict[tuple[str, str], list[float]]:
    return {key: results.amounts(*key) for key in results.values}


FIGURE = rate("done", "done", "1/s")


def _run(measure_with: list[object]) -> Results:
    """Works that do what is told: return a value, or raise."""

    def work(number: int, outcome: object) -> Work:
        def measure(ground: Ground) -> tuple[Value, ...]:
            if isinstance(outcome, Exception):
                raise outcome
            assert isinstance(outcome, float)
            (ground.writer / f"{number}").write_text("here")
            return (Value(outcome),)

        return Work(f"w{number}", (rate(f"f{number}", "", ""),), measure)

    works = [work(number, outcome) for number, outcome in enumerate(measure_with)]
    results = Results({figure.name: figure for it in works for figure in it.figures}, ["local"])
    with Rig() as rig:
        rounds.measure(rig, [Local], works, QUICK, 2, results)
        assert not list(rig.directory.glob("round-*"))
    return results


def test_every_work_is_done_in_every_round_on_a_new_export():
    assert amounts(_run([1.0, 2.0])) == {("f0", "local"): [1.0, 1.0], ("f1", "local"): [2.0, 2.0]}


def test_what_a_system_cannot_do_is_noted_and_it_goes_on():
    results = _run([NotMeasured("no locks"), 2.0])
    assert results.notes == {("f0", "local"): "no locks"}
    assert amounts(results) == {("f1", "local"): [2.0, 2.0]}


def test_what_a_system_cannot_do_at_all_is_tried_once() -> None:
    tried = []

    def measure(ground: Ground) -> tuple[Value, ...]:
        tried.append(ground.system.name)
        raise Cannot("no shared memory")

    results = Results({FIGURE.name: FIGURE}, ["local"])
    with Rig() as rig:
        rounds.measure(rig, [Local], [Work("done", (FIGURE,), measure)], QUICK, 3, results)
    assert tried == ["local"]
    assert results.notes == {("done", "local"): "no shared memory"}


def test_a_system_that_breaks_is_left_out_until_the_next_round():
    results = _run([1.0, TimedOut("hung\nfor long"), 2.0])
    assert results.notes == {("f1", "local"): "broke: hung"}
    assert amounts(results) == {("f0", "local"): [1.0, 1.0]}


def test_a_program_that_fails_is_not_measured(tmp_path: Path):
    def measure(ground: Ground) -> tuple[Value, ...]:
        return (per_second(ground.program("bench_data", "read", ground.writer / "missing", 1 << 20, 1)),)

    results = Results({FIGURE.name: FIGURE}, ["local"])
    with Rig(tmp_path) as rig:
        rounds.measure(rig, [Local], [Work("read", (FIGURE,), measure)], QUICK, 1, results)
    assert "No such file" in results.notes["done", "local"]
