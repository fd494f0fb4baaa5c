"""`tuned.json`: the values that `diastole tune` has found for each method, and how, on which parts of which data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from diastole.experiments.errors import ExperimentError
from diastole.experiments.section import Section
from diastole.experiments.sweep.result import SweepResult
from diastole.experiments.sweep.space import FIXED, MOST_PARAMETERS
from diastole.models.spec import one_line
from diastole.proto.files import write_bytes
from diastole.proto.jsontext import from_json
from diastole.server.events import finite

FILE = "tuned.json"
LARGEST_FILE, MOST_METHODS = 1 << 26, 1000

FREE = ("name", "rounds", "metrics", "engine", "device", "precision", "workers", "plan", "flower")
"""Keys and tables in which a comparison may differ from what its values were tuned for."""


class Entry(Section):
    """What was found for one method.

    Attributes:
        values: the best trial's, by key.
        score: what it came to, the mean over `seeds`.
        metric: what was compared, a figure of a run.
        selected_on: the examples that it was measured on, in words; never those of the test.
        seeds: of each trial's runs.
        rounds: of each trial that was not ended before.
        trials: how many there were.
        pruned: how many of them were ended before their last round.
        parameters: the ranges and lists that values were taken from.
        command: that found them.
        log: every trial: number, values, score, and the round behind which it was ended, or 0.

    """

    values: dict[str, Any] = Field(max_length=MOST_PARAMETERS)
    score: float
    metric: str
    selected_on: str
    seeds: list[int]
    rounds: int
    trials: int
    pruned: int
    parameters: dict[str, Any]
    command: str
    log: list[dict[str, Any]]


class Tuned(Section):
    """What was found for each method.

    Attributes:
        experiment: what was tuned, without method and seed.
        seed: of the experiment, which decides how some data sets are read.
        data: the digest of the data set.
        methods: by name.

    """

    experiment: dict[str, Any]
    seed: int
    data: str
    methods: dict[str, Entry] = Field(max_length=MOST_METHODS)

    @classmethod
    def of(cls, result: SweepResult, seed: int, data: str, command: str) -> Self:
        """Return what a sweep has found. Raises `ExperimentError` if no trial of a method has a value."""
        rounds, methods = result.experiment["rounds"]["count"], dict[str, Any]()
        for method, trials in result.trials.items():
            best = result.best(method)
            methods[method] = {
                "values": dict(best.values),
                "score": best.score.mean,
                "metric": result.metric,
                "selected_on": result.selected_on,
                "seeds": list(result.seeds),
                "rounds": rounds,
                "trials": len(trials),
                "pruned": sum(bool(trial.pruned) for trial in trials),
                "parameters": dict(result.parameters),
                "command": command,
                "log": [
                    {"number": it.number, "values": dict(it.values), "score": it.score.mean, "pruned": it.pruned}
                    for it in trials
                ],
            }
        return cls.model_validate({"experiment": result.experiment, "seed": seed, "data": data, "methods": methods})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file, or the one in a folder. Raises `ExperimentError`."""
        path = path / FILE if path.is_dir() else path
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ExperimentError(f"{path}: is larger than {LARGEST_FILE} bytes; what tune has left is accepted")
            return cls.model_validate(from_json(path.read_text()))
        except FileNotFoundError:
            raise ExperimentError(f"{path}: no such file; diastole tune makes it") from None
        except ValidationError as error:
            raise ExperimentError(f"{path}: not what tune has left: {one_line(error)}") from None
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{path}: not what tune has left: {error}") from None

    def write(self, folder: Path) -> Path:
        """Write the file into a folder, whole or not at all, and return its path."""
        path = folder / FILE
        write_bytes(path, (json.dumps(finite(self.model_dump(mode="json")), indent=2) + "\n").encode())
        return path

    def check(self, experiment: Mapping[str, Any], data: str, where: Path, methods: Sequence[str]) -> None:
        """Raise `ExperimentError` if this was found for another experiment.

        `experiment` is one without method and seed, `data` the digest of its data set as `seed` reads it; `methods` are
        those whose options must be the same.
        """
        if self.data != data:
            raise ExperimentError(f"{where}: was tuned on other data; tune again, or give another folder")
        tables = dict.fromkeys((*self.experiment, *experiment))
        swept = {key for entry in self.methods.values() for key in entry.values}
        others = [
            table
            for table in tables
            if table not in FREE
            and _compared(table, self.experiment, methods, swept) != _compared(table, experiment, methods, swept)
        ]
        if others:
            raise ExperimentError(
                f"{where}: was tuned for another experiment, of other {', '.join(others)}; tune again, or give another "
                "folder"
            )

    def values(self, methods: Sequence[str], where: Path) -> dict[str, dict[str, Any]]:
        """Return the values of some methods, by key. Raises `ExperimentError` for a method without, or a task's key."""
        missing = [method for method in methods if method not in self.methods]
        if missing:
            raise ExperimentError(
                f"{where}: has no values of {', '.join(missing)}; diastole tune --method {','.join(missing)} finds them"
            )
        for method in methods:
            for key in self.methods[method].values:
                if key.split(".")[0] in FIXED:
                    raise ExperimentError(f"{where}: {method}: {key} says what the task is, and cannot be tuned")
        return {method: dict(self.methods[method].values) for method in methods}

    def sources(self, methods: Sequence[str]) -> dict[str, Any]:
        """Return how the values of some methods were found, without the trials; JSON."""
        return {
            "data": self.data,
            "methods": {method: self.methods[method].model_dump(mode="json", exclude={"log"}) for method in methods},
        }


def _compared(table: str, experiment: Mapping[str, Any], methods: Sequence[str], swept: set[str]) -> Any:
    """Return what two experiments must have the same of a table: not where data lie, and not what was tuned."""
    found = experiment.get(table)
    if not isinstance(found, Mapping):
        return None if table in swept else found
    if table == "methods":
        found = {name: options for name, options in found.items() if name in methods}
    return {key: it for key, it in _flat(found, table) if key not in swept and key != "data.path"}


def _flat(table: Mapping[str, Any], before: str) -> list[tuple[str, Any]]:
    found = list[tuple[str, Any]]()
    for key, value in table.items():
        name = f"{before}.{key}"
        found += _flat(value, name) if isinstance(value, Mapping) else [(name, value)]
    return found
