"""Methods at equal bytes and multiply-accumulates: who gets how many rounds, and the bits of runs that have them."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.equal import spent
from diastole.experiments.comparison.runs import RunResult
from diastole.experiments.errors import ExperimentError
from diastole.simulations.compare import compare, finished, kept_runs
from diastole.simulations.compared import ComparedRun, Files, Standing
from diastole.simulations.devices import make_federation
from diastole.simulations.equal import equalise, kinds_of
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

METHODS = ["width", "smallest", "deps", "fedavg", "proxy"]
DOCUMENT: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "data": {"proxy": 40},
    "model": {"widths": [8, 8]},
    "rounds": {"count": 2},
    "proxy": {"epochs": 1},
    "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 1, "width": 0.5}},
}


class Played:
    """Plays runs and notes from which round on."""

    def __init__(self, files: Files) -> None:
        self.files, self.first = files, dict[str, int]()

    def __call__(self, runs: Sequence[ComparedRun]) -> Mapping[str, RunResult]:
        return finished(runs, self.files, self.note)

    def note(self, standing: Standing) -> None:
        self.first.setdefault(standing.run.name, standing.round)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Played]:
    """A comparison with both tables, and what was played for them."""
    folder, settings = tmp_path_factory.mktemp("equal"), Simulation.parse(DOCUMENT, "test")
    played = Played(Files(folder))
    found = compare(settings, METHODS, [5], folder)
    return equalise(settings, found, played.files, kinds_of("macs,bytes"), played), played


def test_cheaper_methods_get_the_rounds_that_fit(made: tuple[Comparison, Played]) -> None:
    found, _ = made
    assert [equal.by for equal in found.equal] == ["bytes", "macs"]
    for equal in found.equal:
        # The costliest that serves every device and is no baseline.
        assert equal.anchor == max(("width", "deps"), key=lambda method: spent(found.runs[method][0], equal.by))
        (allowance,) = equal.allowances
        assert allowance == spent(found.runs[equal.anchor][0], equal.by)
        for method, (reading,) in equal.readings.items():
            if method == "proxy":
                assert reading is None
                continue
            assert reading is not None
            costs = [getattr(closed, equal.by) for closed in reading.run.rounds[: reading.count]]
            assert sum(costs) <= 1.02 * allowance < sum(costs) + 1.1 * sum(costs) / len(costs)
            assert reading.share == sum(costs) / allowance
        smallest = equal.readings["smallest"][0]
        assert smallest is not None
        assert smallest.count == len(smallest.run.rounds) > 2


def test_longer_runs_have_the_bits_of_runs_that_were_never_shorter(made: tuple[Comparison, Played]) -> None:
    found, played = made
    reading = found.equal[0].readings["smallest"][0]
    assert reading is not None
    # It went on from where the shorter run had ended.
    assert played.first[f"smallest-seed5-count={reading.count}"] == 2
    settings = Simulation.parse(DOCUMENT | {"method": "smallest"}, "test").changed(rounds__count=reading.count)
    alone = simulate(make_federation(settings))
    assert [closed.scores for closed in reading.run.rounds] == [closed.scores for closed in alone.rounds]


def test_what_depends_on_the_number_of_rounds_is_run_anew(tmp_path: Path) -> None:
    settings = Simulation.parse(DOCUMENT | {"methods": {"deps": {"warmup": 0.5}}}, "test")
    found = compare(settings, ["deps", "exclusive"], [5], tmp_path)
    assert settings.changed(method="deps").scheduled
    played = Played(Files(tmp_path))
    (equal,) = equalise(settings, found, played.files, ("macs",), played, anchor="exclusive").equal
    (reading,) = equal.readings["deps"]
    # Its second round is too much, and the first one of two is not that of a run of one.
    assert reading is not None
    assert (reading.count, len(reading.run.rounds)) == (1, 1)
    assert played.first == {"deps-seed5-count=1": 0}


def test_costlier_methods_are_read_earlier_and_bounds_leave_dashes(made: tuple[Comparison, Played]) -> None:
    found, played = made
    settings = Simulation.parse(DOCUMENT, "test")
    fedavg = found.equal[0].readings["fedavg"][0]
    assert fedavg is not None
    # Each of its rounds was evaluated, so no run of fewer was needed.
    assert (fedavg.run, fedavg.count) == (found.runs["fedavg"][0], 1)
    bounded = equalise(settings, found, played.files, ("bytes",), played, most=2).equal[0]
    assert bounded.readings["smallest"] == [None]
    assert bounded.readings["width"] == found.equal[0].readings["width"]


def test_kept_runs_are_found_again(made: tuple[Comparison, Played]) -> None:
    found, played = made
    settings = Simulation.parse(DOCUMENT, "test")
    again = equalise(settings, found, played.files, kinds_of("bytes,macs"), lambda runs: kept_runs(runs, played.files))
    assert again == found
    with pytest.raises(ExperimentError, match=r"has no finished run \w+-seed5-count=\d; compare --methods"):
        equalise(
            settings,
            found,
            played.files,
            ("bytes",),
            lambda runs: kept_runs(runs, played.files),
            anchor="fedavg",
            most=99,
        )


def test_training_is_timed_beside_what_it_computes(made: tuple[Comparison, Played]) -> None:
    found, _ = made
    summary = found.summary()
    assert {run.clock for runs in found.runs.values() for run in runs} == {"processor"}
    assert summary["proxy"]["training_seconds"].mean == 0
    assert summary["width"]["training_seconds_of_width"].mean == summary["width"]["macs_of_width"].mean == 1
    fedavg = summary["fedavg"]
    (width, full) = (found.runs[method][0] for method in ("width", "fedavg"))
    assert full.training_seconds is not None
    assert width.training_seconds is not None
    assert fedavg["training_seconds_of_width"].mean == full.training_seconds / width.training_seconds
    assert (fedavg["macs_of_width"].mean or 0) > 1


@pytest.mark.parametrize(
    ("kinds", "anchor", "message"),
    [
        ("bytes,time", "", "equal: 'time' cannot be made equal; accepted: bytes, macs"),
        ("bytes", "conv", "anchor conv: is not compared; accepted: width, smallest"),
        ("macs", "proxy", "anchor 'proxy': spends no macs"),
    ],
)
def test_what_cannot_be_made_equal_is_one_line(
    kinds: str, anchor: str, message: str, made: tuple[Comparison, Played]
) -> None:
    found, played = made
    with pytest.raises(ExperimentError) as caught:
        equalise(Simulation.parse(DOCUMENT, "test"), found, played.files, kinds_of(kinds), played, anchor=anchor)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_has_every_table(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(
        "name = 'small'\nseed = 5\n[model]\nwidths = [16, 32]\n[rounds]\ncount = 1\n"
        "[tiers]\nlarge = { devices = 2, width = 1.0 }\nsmall = { devices = 1, width = 0.25 }\n"
    )
    arguments = ("compare", path, "--methods", "width,smallest", "--seeds", 1, "--out", out, "--equal", "bytes")
    code, text, err = run(*arguments, "--against", "width", "--json")
    assert (code, err.count("runs done")) == (0, 3)
    document = json.loads(text)
    (equal,) = document["equal"]
    assert (equal["by"], equal["anchor"], document["against"]) == ("bytes", "width", "width")
    assert equal["readings"]["smallest"][0]["rounds"] == len(equal["readings"]["smallest"][0]["run"]["rounds"]) > 1
    assert document["differences"]["smallest"]["accuracy"]["against"] == "width"
    assert "width" not in document["differences"]
    tables = (out / "comparison.md").read_text()
    assert "after as many bytes as width in 1 rounds" in tables
    assert tables.count("Differences from width, points, seed 5") == 2
    code, shown, err = run(*arguments, "--against", "width", "--json", "--show", "width,smallest")
    assert (code, json.loads(shown), err.count("runs done")) == (0, document, 0)
    code, shown, err = run(*arguments, "--anchor", "conv")
    assert (code, shown, err) == (2, "", "error: --anchor conv: is not compared; accepted: width, smallest\n")
