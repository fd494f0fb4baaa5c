"""The runs of a comparison, how they stand, and the files that they are kept in."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import ValidationError

from diastole.experiments.checkpoint import Checkpoint, label, refuse_other
from diastole.experiments.comparison.runs import RUN_RESULT, RunResult
from diastole.experiments.data.dataset import Dataset, draw_examples, split_proxy, without
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.methods.registry import METHODS
from diastole.models.seeds import generator
from diastole.models.spec import one_line
from diastole.proto.files import write_bytes
from diastole.proto.jsontext import from_json
from diastole.server.coordinator import Coordinator
from diastole.server.events import Observer
from diastole.simulations.devices import Federation
from diastole.simulations.simulation import Simulation

Held = float | Literal["proxy"] | None
NONE: Mapping[str, Mapping[str, Any]] = {}

NEUTRAL = "exclusive"
"""A baseline without any rule of its own, for what must not be refused because of the method."""


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        method: that is compared.
        seed: of the run.
        home: the experiment that says which size each tier's devices take.
        width: of a federation in which all devices train the same width; None for any other run.
        point: names the values of a sweep that the experiment has; empty for its own.
        held: what it is tested on in place of the test set: a share of the training examples that is held out, or the
            validation part of the "proxy" set. None for the test set.
        bars: rounds of a trial, each with the score that has to be reached there, or the run is ended.
        judged: the figure that is meant.

    """

    method: str
    seed: int
    home: Simulation
    width: float | None = None
    point: str = ""
    held: Held = None
    bars: Sequence[tuple[int, float]] = ()
    judged: str = ""

    @property
    def name(self) -> str:
        """Unique among the runs of a comparison, and good for a file."""
        width, point = "" if self.width is None else f"-{self.width:g}", f"-{self.point}" if self.point else ""
        return f"{self.method}{width}-seed{self.seed}{point}"

    @property
    def simulation(self) -> Simulation:
        """What is run: in a dedicated federation every tier has the same width."""
        if self.width is None:
            return self.home
        tiers = {name: {"devices": tier.devices, "width": self.width} for name, tier in self.home.tiers.items()}
        return self.home.changed(tiers=tiers, method=self.method)


@dataclass(frozen=True, slots=True)
class Standing:
    """A run stands behind `round` closed rounds, with a score by its metric; `done` once its result is written."""

    run: ComparedRun
    round: int
    score: float | None = None
    done: bool = False
    metric: str = "accuracy"


class Screen(Protocol):
    """Shows runs of this process while they go on."""

    def watch(self, run_id: str, federation: Federation) -> Observer:
        """Return an observer of a run."""
        ...

    def begun(self, run_id: str, coordinator: Coordinator) -> None:
        """Take in the coordinator of a run before its first round."""
        ...


Tell = Callable[[Standing], None]


def planned_runs(
    simulation: Simulation,
    methods: Sequence[str],
    seeds: Sequence[int],
    values: Mapping[str, Mapping[str, Any]] = NONE,
    held: Held = None,
) -> list[ComparedRun]:
    """Return every run of a comparison, seed by seed. Raises `ExperimentError`.

    Args:
        simulation: the experiment.
        methods: by their own names.
        seeds: of the runs.
        values: of keys of the experiment, such as "training.learning_rate", for each method that has its own.
        held: what is in the place of the test set.

    """
    found = list[ComparedRun]()
    widths = sorted({tier.width for tier in simulation.tiers.values() if tier.devices})
    for seed in seeds:
        for name in methods:
            # Options of other methods must not make this run another one.
            options = {key: value for key, value in simulation.methods.items() if key == name}
            each = METHODS[name].each_width
            own = values.get(name, {})
            # Unless a paper's own are asked for, every method has the same tricks.
            changes = {"methods": options, "recipe": simulation.recipe or "none"} | {
                key.replace(".", "__"): value for key, value in own.items()
            }
            home = simulation.changed(method=NEUTRAL if each else name, seed=seed, **changes)
            chosen: Sequence[float | None] = widths if each else [None]
            found += [ComparedRun(name, seed, home, width, point_of(own), held) for width in chosen]
    return found


def point_of(values: Mapping[str, Any]) -> str:
    """Return a name of these values, good for a file: what they are, or a hash where that would be no name."""
    short = [key.rpartition(".")[2] for key in values]
    names = short if len(set(short)) == len(short) else list(values)
    text = ",".join(f"{name}={value}" for name, value in zip(names, values.values(), strict=True))
    if re.fullmatch(r"[\w.=,+-]{0,100}", text, re.ASCII):
        return text
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]


def known(methods: Sequence[str]) -> list[str]:
    """Return the methods by their own names, each once. Raises `ExperimentError` for one that there is not."""
    for name in methods:
        if name not in METHODS:
            raise ExperimentError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return list(dict.fromkeys(map(METHODS.name, methods)))


class Files:
    """What a comparison keeps in its folder: for each run a checkpoint, then its result; tied to what decides them."""

    def __init__(self, folder: Path, dataset: Dataset | None = None) -> None:
        """Use `folder/runs`; `dataset` is in the place of the one that the experiment names."""
        self.folder, self.given, self._given = folder, dataset is not None, dataset
        self._folder = folder / "runs"

    def dataset(self, run: ComparedRun) -> Dataset:
        """Return what a run is on."""
        data = run.home.data
        dataset = self._given or _loaded(data.name, data.path, run.home.reading(run.seed))
        return dataset if run.held is None else held_out(dataset, run.held, run.home)

    def checkpoint(self, run: ComparedRun) -> Checkpoint:
        """Return where a run is kept until it has a result."""
        return Checkpoint(self._folder / f"{run.name}.checkpoint", run.simulation, self.digest(run))

    def curves(self, run: ComparedRun) -> Path:
        """Return the folder that trackers write a run's curves to."""
        return self._folder / run.name

    def read(self, run: ComparedRun) -> RunResult | None:
        """Return a finished run; None if there is none, or only its first rounds.

        One that a sweep has ended counts as finished for that sweep only, whose runs have bars.

        Raises `ExperimentError` if it is of another experiment, or on other data.
        """
        path = self._result(run)
        if not path.exists():
            return None
        try:
            document = from_json(path.read_text())
            found, wanted = str(document["label"]), self._label(run)
            if found != wanted and self.checkpoint(run).check() is not None:
                # It is given more rounds.
                return None
            # What another version has written is of another form.
            refuse_other(found, wanted, f"{path}: the run there")
            result = RUN_RESULT.validate_python(document["result"])
            return None if result.pruned and not run.bars else result
        except ValidationError as error:
            raise ExperimentError(f"{path}: not the result of a run: {one_line(error)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{path}: not the result of a run: {error!r}") from None

    def write(self, run: ComparedRun, result: RunResult) -> None:
        """Write a finished run, whole or not at all."""
        document = {"label": self._label(run), "result": RUN_RESULT.dump_python(result, mode="json")}
        write_bytes(self._result(run), (json.dumps(document) + "\n").encode())

    def lead(self, shorter: ComparedRun, longer: ComparedRun) -> None:
        """Let a run that is not begun go on from where a shorter one of the same bits has ended, if that is kept."""
        source, target = (self._folder / f"{run.name}.finished" for run in (shorter, longer))
        begun = (self._result(longer), target, target.with_suffix(".checkpoint"))
        if source.exists() and not any(path.exists() for path in begun):
            write_bytes(target, source.read_bytes())

    def remove(self, run: ComparedRun) -> None:
        """Remove a run, finished or not."""
        self._result(run).unlink(missing_ok=True)
        self.checkpoint(run).remove()

    def _result(self, run: ComparedRun) -> Path:
        return self._folder / f"{run.name}.json"

    def _label(self, run: ComparedRun) -> str:
        return label(self.digest(run), run.simulation, run.home)

    def digest(self, run: ComparedRun) -> str:
        """Return what tells the data set of a run from every other."""
        data = run.home.data
        digest = self._given.digest if self._given else _digest(data.name, data.path, run.home.reading(run.seed))
        return digest if run.held is None else f"{digest}, {run.held}"


def held_out(dataset: Dataset, held: float | Literal["proxy"], experiment: Experiment) -> Dataset:
    """Return a data set whose test is examples of the training part; the true test examples are not in it.

    They are a share of each class, which is then trained on by nobody, or what the server holds for selection.
    """
    train, data, seed = dataset.train, experiment.data, experiment.seed
    if held == "proxy":
        _, chosen, _ = split_proxy(dataset, data.proxy, seed, data.proxy_validation)
        if not len(chosen):
            raise ExperimentError(
                f"sweep.validation: data.proxy is {data.proxy}; at least 2 are needed to select on it"
            )
        return replace(dataset, test=train.subset(chosen))
    count = max(1, round(held * len(train)))
    chosen = draw_examples(dataset.strata, count, generator(seed, "sweep"), proportional=True)
    rest = without(torch.arange(len(train)), chosen)
    users = None if dataset.users is None else dataset.users[rest]
    return replace(dataset, train=train.subset(rest), test=train.subset(chosen.sort().values), users=users)


@lru_cache(maxsize=1)
def _loaded(name: str, path: Path | None, reading: Reading) -> Dataset:
    return load(name, path, reading)


@cache
def _digest(name: str, path: Path | None, reading: Reading) -> str:
    return _loaded(name, path, reading).digest
