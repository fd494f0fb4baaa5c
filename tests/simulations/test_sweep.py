"""What a sweep tries, on which examples it chooses, and that it goes on where it was stopped."""

import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning import TEXT

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.sets import load
from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.result import SweepResult
from diastole.models.training import Examples
from diastole.simulations.compared import Standing, held_out
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation
from diastole.simulations.sweep import sweep

Run = Callable[..., tuple[int, str, str]]
LOG = {"low": 0.001, "high": 0.5, "log": True}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", None, experiment().reading(5))


def experiment(parameters: Any = (), **plan: Any) -> Simulation:
    parameters = parameters or {"training.learning_rate": [0.01, 0.1]}
    return Simulation.parse(tomllib.loads(TEXT) | {"sweep": {"parameters": parameters} | plan}, "test")


def tried(result: SweepResult, method: str = "width") -> list[tuple[Any, float | None]]:
    return [(trial.values["training.learning_rate"], trial.score.mean) for trial in result.trials[method]]


def test_a_trial_is_a_run_on_examples_that_nobody_trains_on(digits: Dataset, tmp_path: Path) -> None:
    settings = experiment({"training.learning_rate": [0.1]}, seeds=2)
    found = sweep(settings, ["width"], tmp_path, dataset=digits)
    for rate, score in tried(found):
        accuracies = []
        for seed in (5, 6):
            run = settings.changed(method="width", recipe="none", seed=seed, training__learning_rate=rate)
            held = held_out(digits, 0.1, run)
            assert len(held.test) == round(0.1 * len(digits.train)) == len(digits.train) - len(held.train)
            # Each training example is in one of the two, and none of the test's in either.
            rows = {row.numpy().tobytes() for row in torch.cat([held.train.x, held.test.x])}
            assert rows == {row.numpy().tobytes() for row in digits.train.x}
            accuracies.append(simulate(make_federation(run, held)).accuracy or 0.0)
        assert score == sum(accuracies) / 2


@pytest.mark.parametrize("validation", [pytest.param(0.2, marks=pytest.mark.slow), "proxy"])
def test_nothing_is_selected_on_the_test(validation: float | str, digits: Dataset, tmp_path: Path) -> None:
    settings = experiment(validation=validation)
    wrong = replace(digits, test=Examples(digits.test.x, (digits.test.y + 1) % 10))
    found = [sweep(settings, ["width"], tmp_path / name, dataset=it) for name, it in (("a", digits), ("b", wrong))]
    assert tried(found[0]) == tried(found[1])
    assert found[0].selected_on == (
        "the validation part of the proxy set" if validation == "proxy" else "20% of the training examples, held out"
    )
    assert len(held_out(digits, "proxy", settings).test) == 10


# Optuna's first ten are drawn without looking at others.
@pytest.mark.parametrize("trials", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_search_that_was_stopped_goes_on_to_the_same_trials(trials: int, digits: Dataset, tmp_path: Path) -> None:
    space = {"training.learning_rate": LOG, "training.optimiser": ["sgd", "adam"]}
    settings, out, stops = experiment(space, trials=trials, batch=2), tmp_path / "out", [trials - 1, 1]
    whole = sweep(settings, ["exclusive"], tmp_path / "whole", dataset=digits)

    def stop(standing: Standing) -> None:
        if standing.done and len(list(out.glob("runs/*.json"))) == stops[-1]:
            stops.pop()
            raise KeyboardInterrupt

    while stops:
        with pytest.raises(KeyboardInterrupt):
            sweep(settings, ["exclusive"], out, stop, dataset=digits)
    # As if it had been killed while it wrote.
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"op_code":')
    told = list[Standing]()
    found = sweep(settings, ["exclusive"], out, told.append, dataset=digits)
    assert found == whole
    assert len({trial.values["training.learning_rate"] for trial in found.trials["exclusive"]}) == trials
    # What was done is not run again.
    assert sum(standing.round == 0 for standing in told) == 1
    with pytest.raises(ExperimentError, match="the search of exclusive there was of another experiment, or over other"):
        sweep(settings.changed(rounds__count=2), ["exclusive"], out, dataset=digits)
    more = sweep(settings.changed(sweep__trials=trials + 1), ["exclusive"], out, dataset=digits)
    assert more.trials["exclusive"][:trials] == whole.trials["exclusive"]
    assert len(more.trials["exclusive"]) == trials + 1


def test_a_grid_may_grow(digits: Dataset, tmp_path: Path) -> None:
    first = sweep(experiment(), ["width", "exclusive"], tmp_path, dataset=digits)
    assert [rate for rate, _ in tried(first)] == [0.01, 0.1]
    told = list[Standing]()
    wider = experiment({"training.learning_rate": [0.1, 0.05, 0.01]})
    second = sweep(wider, ["width"], tmp_path, told.append, dataset=digits)
    assert tried(second)[::2] == tried(first)[::-1]
    assert {standing.run.point for standing in told if not standing.done} == {"learning_rate=0.05"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"training.learning_rate": [0.1, -1]}}, "training.learning_rate"),
        ({"parameters": {"training.rate": [0.1, 0.2]}}, "training.rate: no such key"),
        ({"parameters": {"methods.conv.epochs": [1, 2]}}, "methods.conv.epochs is an option of no method here"),
        ({"metric": "accuracy/huge"}, "sweep.metric: 'accuracy/huge' is no figure of a run; accepted: accuracy, "),
        ({"validation": "proxy", "data": {"proxy": 0}}, "data.proxy is 0"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_run(
    changes: dict[str, Any], message: str, digits: Dataset, tmp_path: Path
) -> None:
    told, data = list[Standing](), changes.pop("data", {"proxy": 40})
    with pytest.raises(ExperimentError) as caught:
        sweep(experiment(**changes).changed(data=data), ["width"], tmp_path, told.append, dataset=digits)
    assert message in str(caught.value)
    assert (told, "\n" in str(caught.value)) == ([], False)


def test_the_command_compares_at_the_best_values(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(TEXT)
    arguments = ("compare", path, "--methods", "width,exclusive", "--seeds", 1, "--out", out, "--json")
    grid = ("--grid", "training.learning_rate=0.001,0.1", "--grid", "training.epochs=1")
    code, text, _ = run(*arguments, *grid, "--track", "csv")
    document = json.loads(text)
    assert code == 0
    assert len(document["sweep"]["trials"]["width"]) == 2
    best = {name: it["values"] for name, it in document["sweep"]["best"].items()}
    assert document["experiment"]["values"] == best
    assert best["width"]["training.learning_rate"] == 0.1
    assert {path.name for path in out.iterdir()} == {
        *("runs", "sweep", "sweep.json", "sweep.md", "best-width.toml", "best-exclusive.toml"),
        *("comparison.json", "comparison.md"),
    }
    assert len(list(out.glob("**/rounds.csv"))) == 6
    # The file of the best values is the compared run.
    code, text, _ = run("simulate", out / "best-width.toml", "--out", tmp_path / "report", "--json")
    assert json.loads(text)["accuracy"]["width"] == document["runs"]["width"][0]["rounds"][-1]["accuracy"]
    code, shown, err = run("compare", path, *grid, "--seeds", 1, "--out", out, "--json", "--show", "exclusive")
    assert (code, err.count("runs done")) == (0, 0)
    assert json.loads(shown)["runs"] == {"exclusive": document["runs"]["exclusive"]}
    code, _, err = run("compare", path, *grid, "--seeds", 2, "--out", out, "--show", "exclusive")
    assert (code, "has no finished run exclusive-seed6" in err, err.splitlines()[-1][:6]) == (2, True, "error:")


def test_without_a_method_or_values_the_command_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    for arguments, message in (
        (("--grid", "training.epochs=1,2"), "nothing to sweep: a method"),
        (("--methods", "width", "--grid", "training.epochs"), "reads table.key=value"),
        (("--methods", "width", "--grid", "training.epochs=0,1"), "training.epochs"),
    ):
        code, text, err = run("compare", path, *arguments, "--out", tmp_path / "out")
        assert (code, text, err.count("\n"), message in err) == (2, "", 1, True)
    assert not (tmp_path / "out").exists()
