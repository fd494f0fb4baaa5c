"""Trials that are ended early: by Optuna's own rule, and the same ones whenever the sweep was stopped."""

import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.sets import load
from diastole.models.metrics import ahead
from diastole.server.events import RoundClosed
from diastole.simulations.compare import finished
from diastole.simulations.compared import ComparedRun, Files, Standing, planned_runs
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.pruning import EARLIER, Pruner, bars_of
from diastole.simulations.simulation import Simulation
from diastole.simulations.sweep import sweep

SETTINGS: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "model": {"widths": [8, 8]},
    "rounds": {"count": 4},
    "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 1, "width": 0.5}},
    "sweep": {
        "parameters": {"training.learning_rate": {"low": 1e-4, "high": 0.3, "log": True}},
        "trials": 9,
        "batch": 2,
        "prune": 2,
    },
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", None, Simulation.parse(SETTINGS, "test").reading(5))


@pytest.fixture(scope="module")
def federation(digits: Dataset) -> Federation:
    return make_federation(Simulation.parse(SETTINGS | {"method": "width"}, "test"), digits)


def closed(number: int, score: float, tiers: dict[str, float] | None = None) -> RoundClosed:
    """Return a made-up round."""
    by_tier = {label: {"accuracy": of, "loss": 1 - of} for label, of in (tiers or {}).items()}
    return RoundClosed(number, 2, "", {"accuracy": score, "loss": 1 - score}, by_tier, 1, 1, 1.0)


def ended(run: ComparedRun, federation: Federation, rounds: list[RoundClosed], before: int = 0) -> int:
    """Return behind which round a run is ended, 0 for none; the first `before` are an earlier process's."""
    stopped = list[int]()
    coordinator: Any = SimpleNamespace(closed=rounds[:before], stop=lambda: stopped.append(1))
    pruner = Pruner(run, federation)
    pruner.begun(coordinator)
    for event in rounds[before:]:
        if pruner.ended:
            break
        pruner(event)
        before = event.round
    assert len(stopped) == pruner.ended
    return before if pruner.ended else 0


@pytest.mark.parametrize("figure", ["accuracy", "loss"])
@pytest.mark.parametrize("seed", range(15))
def test_a_trial_is_ended_where_optuna_would_end_it(figure: str, seed: int, federation: Federation) -> None:
    draws, rounds, first = random.Random(seed), 6, 2
    curves = [{k: draws.random() for k in range(1, rounds + 1) if draws.random() < 0.8} for _ in range(2 + seed % 6)]
    direction = "maximize" if figure == "accuracy" else "minimize"
    pruner = optuna.pruners.MedianPruner(EARLIER, n_warmup_steps=first, n_min_trials=EARLIER)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for curve in curves:
        values = curve or {1: 0.5}
        study.add_trial(optuna.trial.create_trial(value=list(values.values())[-1], intermediate_values=curve))
    scores = [draws.random() for _ in range(rounds)]
    trial, expected = study.ask(), 0
    for number, score in enumerate(scores, 1):
        trial.report(score, number)
        if trial.should_prune():
            expected = number
            break
    bars = bars_of(curves, first)
    for number, bar in bars:
        known = [curve[number] for curve in curves if number in curve]
        assert len(known) >= EARLIER
        assert bar == statistics.median(known)
    (planned,) = planned_runs(federation.simulation, ["width"], [5])
    run = replace(planned, bars=bars, judged=figure)
    played = [closed(k, score if figure == "accuracy" else 1 - score) for k, score in enumerate(scores, 1)]
    assert ended(run, federation, played) == expected
    # An earlier process may have closed any of the rounds up to there.
    for before in range(expected):
        assert ended(run, federation, played, before) == expected


def test_figures_of_tiers_end_trials_too(federation: Federation) -> None:
    (planned,) = planned_runs(federation.simulation, ["width"], [5])
    rounds = [closed(k, 0.9, {"width 1": 0.9, "width 0.5": small}) for k, small in enumerate((0.4, 0.6, 0.2), 1)]
    for figure, bar, expected in (
        ("worst_tier_accuracy", 0.5, 1),
        ("mean_tier_accuracy", 0.7, 1),
        ("accuracy/small", 0.6, 1),
        ("accuracy/large", 0.9, 0),
        ("worst_tier_accuracy", 0.3, 0),
    ):
        bars = [(number, bar) for number in (1, 2, 3)]
        run = replace(planned, bars=bars, judged=figure)
        assert ended(run, federation, rounds) == expected, figure


def test_a_run_that_was_ended_goes_on_to_the_same_bits_if_it_is_wanted_whole(digits: Dataset, tmp_path: Path) -> None:
    (plain,) = planned_runs(Simulation.parse(SETTINGS, "test").changed(rounds__count=2), ["width"], [5], held=0.1)
    run, files = replace(plain, bars=[(1, 2.0)], judged="accuracy"), Files(tmp_path, digits)
    (ended,) = finished([run], files, lambda _: None).values()
    assert (ended.pruned, len(ended.rounds)) == (True, 1)
    assert files.read(run) == ended
    assert files.read(plain) is None
    first = list[int]()
    (whole,) = finished([plain], files, lambda standing: first.append(standing.round)).values()
    assert (whole.pruned, first[0]) == (False, 1)
    (alone,) = finished([plain], Files(tmp_path / "alone", digits), lambda _: None).values()
    assert [closed.scores for closed in whole.rounds] == [closed.scores for closed in alone.rounds]
    # Whoever would end it again takes what there is.
    assert files.read(run) == whole


@pytest.mark.slow
def test_a_pruned_search_that_was_stopped_goes_on_to_the_same_trials(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    settings, out, stops = Simulation.parse(SETTINGS, "test"), tmp_path / "out", [7, 5]
    whole = sweep(settings, ["smallest"], tmp_path / "whole", dataset=digits)
    trials = whole.trials["smallest"]
    assert {trial.pruned for trial in trials[:EARLIER]} == {0}
    pruned = [trial for trial in trials if trial.pruned]
    assert pruned
    assert all(2 <= trial.pruned < 4 and trial.score.mean is None for trial in pruned)
    assert not whole.best("smallest").pruned
    files = Files(tmp_path / "whole", digits)

    def kept(number: int) -> Any:
        own = {"smallest": trials[number].values}
        (run,) = planned_runs(settings, ["smallest"], [5], own, 0.1)
        assert files.read(run) is None or not trials[number].pruned
        return files.read(replace(run, bars=[(1, 0.0)]))

    # Each was behind the median of those that had gone to their end before its batch.
    for trial in trials[EARLIER:]:
        before = [kept(k) for k in range(trial.number // 2 * 2) if not trials[k].pruned]
        run, best = kept(trial.number), 0.0
        assert len(run.rounds) == (trial.pruned or 4)
        for number, here in enumerate(run.rounds[:3]):
            best = max(best, here.scores["accuracy"])
            bar = statistics.median(other.rounds[number].scores["accuracy"] for other in before)
            behind = len(before) >= EARLIER and number + 1 >= 2 and ahead("accuracy", bar, best)
            assert behind == (number + 1 == trial.pruned)

    def stop(standing: Standing) -> None:
        if len(list(out.glob("runs/*.json"))) == stops[-1]:
            stops.pop()
            raise KeyboardInterrupt

    while stops:
        with pytest.raises(KeyboardInterrupt):
            sweep(settings, ["smallest"], out, stop, dataset=digits)
    assert sweep(settings, ["smallest"], out, dataset=digits) == whole
