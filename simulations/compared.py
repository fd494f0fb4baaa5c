"""The runs of a comparison, how they stand, and the files that they are kept in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from pydantic import ValidationError

from diastole.experiments.checkpoint import Checkpoint, label, refuse_other
from diastole.experiments.comparison.comparison import RUN_RESULT, RunResult
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.experiments.errors import ExperimentError
from diastole.models.methods.registry import METHODS
from diastole.models.spec import one_line
from diastole.server.checkpoints import write_bytes
from diastole.simulations.simulation import Simulation

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

    """

    method: str
    seed: int
    home: Simulation
    width: float | None = None

    @property
    def name(self) -> str:
        """Unique among the runs of a comparison, and good for a file."""
        return f"{self.method}{'' if self.width is None else f'-{self.width:g}'}-seed{self.seed}"

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


Tell = Callable[[Standing], None]


def planned_runs(simulation: Simulation, methods: Sequence[str], seeds: Sequence[int]) -> list[ComparedRun]:
    """Return every run of a comparison, seed by seed. Raises `ExperimentError`."""
    found = list[ComparedRun]()
    widths = sorted({tier.width for tier in simulation.tiers.values() if tier.devices})
    for seed in seeds:
        for name in methods:
            # Options of other methods must not make this run another one.
            options = {key: value for key, value in simulation.methods.items() if key == name}
            each = METHODS[name].each_width
            home = simulation.changed(method=NEUTRAL if each else name, seed=seed, methods=options)
            chosen: Sequence[float | None] = widths if each else [None]
            found += [ComparedRun(name, seed, home, width) for width in chosen]
    return found


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
        self._folder, self._given = folder / "runs", dataset

    def dataset(self, run: ComparedRun) -> Dataset:
        """Return what a run is on."""
        data = run.home.data
        return self._given or _loaded(data.name, data.path, run.home.reading(run.seed))

    def checkpoint(self, run: ComparedRun) -> Checkpoint:
        """Return where a run is kept until it has a result."""
        return Checkpoint(self._folder / f"{run.name}.checkpoint", run.simulation, self._digest(run))

    def read(self, run: ComparedRun) -> RunResult | None:
        """Return a finished run, or None. Raises `ExperimentError` if it is of another experiment, or on other data."""
        path = self._result(run)
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text())
            # What another version has written is of another form.
            refuse_other(str(document["label"]), self._label(run), f"{path}: the run there")
            return RUN_RESULT.validate_python(document["result"])
        except ValidationError as error:
            raise ExperimentError(f"{path}: not the result of a run: {one_line(error)}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ExperimentError(f"{path}: not the result of a run: {error!r}") from None

    def write(self, run: ComparedRun, result: RunResult) -> None:
        """Write a finished run, whole or not at all."""
        document = {"label": self._label(run), "result": RUN_RESULT.dump_python(result, mode="json")}
        write_bytes(self._result(run), (json.dumps(document) + "\n").encode())

    def remove(self, run: ComparedRun) -> None:
        """Remove a run, finished or not."""
        for path in (self._result(run), self._folder / f"{run.name}.checkpoint"):
            path.unlink(missing_ok=True)

    def _result(self, run: ComparedRun) -> Path:
        return self._folder / f"{run.name}.json"

    def _label(self, run: ComparedRun) -> str:
        return label(self._digest(run), run.simulation, run.home)

    def _digest(self, run: ComparedRun) -> str:
        data = run.home.data
        return self._given.digest if self._given else _digest(data.name, data.path, run.home.reading(run.seed))


@lru_cache(maxsize=1)
def _loaded(name: str, path: Path | None, reading: Reading) -> Dataset:
    return load(name, path, reading)


@cache
def _digest(name: str, path: Path | None, reading: Reading) -> str:
    return _loaded(name, path, reading).digest
