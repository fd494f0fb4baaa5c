"""What came of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diastole.experiments.comparison.spread import Spread
from diastole.experiments.errors import ExperimentError
from diastole.models.metrics import Better
from diastole.proto.jsontext import from_json


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of a sweep.

    Attributes:
        number: counted from 0, for each method.
        values: by key.
        score: the metric's mean and spread over the seeds; no mean if a seed has no value, or the trial was pruned.
        pruned: the round behind which it was ended; 0 if it was not.

    """

    number: int
    values: Mapping[str, Any]
    score: Spread
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        experiment: what was asked for, without method and seed; JSON.
        parameters: the ranges and lists that values were taken from; JSON.
        metric: what is compared, a figure of a run.
        of: the metric by name that it is a value of; empty for a cost.
        better: which values of it are.
        selected_on: the examples that it was measured on, in words; never those of the test.
        seeds: of each trial's runs.
        trials: by method, in order.

    """

    experiment: Mapping[str, Any]
    parameters: Mapping[str, Any]
    metric: str
    of: str
    better: Better
    selected_on: str
    seeds: Sequence[int]
    trials: Mapping[str, Sequence[Trial]]

    def ranked(self, method: str) -> list[Trial]:
        """Return a method's trials from the best to the worst, those without a value last and equals in order."""
        sign = -1 if self.better == "higher" else 1
        return sorted(
            self.trials[method], key=lambda it: (it.score.mean is None, sign * (it.score.mean or 0.0), it.number)
        )

    def best(self, method: str) -> Trial:
        """Return a method's best trial, the first of equals. Raises `ExperimentError` if no trial has a value."""
        found = self.ranked(method)[0]
        if found.score.mean is None:
            raise ExperimentError(f"sweep of {method}: no trial has a {self.metric}; nothing can be chosen")
        return found

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The best values of each method, by key."""
        return {method: dict(self.best(method).values) for method in self.trials}

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "experiment": dict(self.experiment),
            "parameters": dict(self.parameters),
            "metric": self.metric,
            "better": self.better,
            "selected_on": self.selected_on,
            "seeds": list(self.seeds),
            "best": {method: asdict(self.best(method)) for method in self.trials},
            "trials": {method: [asdict(trial) for trial in trials] for method, trials in self.trials.items()},
        }


def read_values(folder: Path, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the best values of methods that a sweep has left in a folder's `sweep.json`. Raises `ExperimentError`."""
    path = folder / "sweep.json"
    try:
        best = from_json(path.read_text())["best"]
        return {method: dict(best[method]["values"]) for method in methods}
    except KeyError as error:
        raise ExperimentError(f"{path}: has no values of {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ExperimentError(f"{path}: not what a sweep has left: {error}") from None
