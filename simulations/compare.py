"""Run methods side by side: the same data, devices, rounds, budgets and proxy set; only the method differs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from diastole.experiments.checkpoint import Checkpoint, label
from diastole.experiments.comparison.comparison import (
    RUN_RESULT,
    Comparison,
    RoundResult,
    RunResult,
    TierResult,
    together,
)
from diastole.experiments.data.sets import Dataset, load
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import BASELINES, Experiment
from diastole.experiments.report.report import Report
from diastole.models.methods.registry import METHODS
from diastole.models.spec import one_line
from diastole.models.training import Examples
from diastole.server.checkpoints import write_bytes
from diastole.server.events import Event, RoundClosed, RunStarted
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulate import Outcome, simulate

DEDICATED = "dedicated"
"""For each tier's width a federation in which all devices train that width, as if they could: a reference, no fleet."""

NAMES = (*METHODS, *BASELINES, DEDICATED)
ALONE = ("processes", "auto", "flower")


@dataclass(frozen=True, slots=True)
class Leg:
    """One run of a comparison.

    Attributes:
        method: that is compared.
        seed: of the run.
        home: the experiment that says which size each tier's devices take.
        width: of a dedicated federation; None for any other run.

    """

    method: str
    seed: int
    home: Experiment
    width: float | None = None

    @property
    def name(self) -> str:
        """Unique among the runs of a comparison, and good for a file."""
        return f"{self.method}{'' if self.width is None else f'-{self.width:g}'}-seed{self.seed}"

    @property
    def experiment(self) -> Experiment:
        """What is run: in a dedicated federation every tier has the same width."""
        if self.width is None:
            return self.home
        tiers = {name: {"devices": tier.devices, "width": self.width} for name, tier in self.home.tiers.items()}
        return self.home.changed(tiers=tiers)


@dataclass(frozen=True, slots=True)
class Stand:
    """A run stands behind `round` closed rounds; `done` once its result is written."""

    leg: Leg
    round: int
    accuracy: float | None = None
    done: bool = False


Tell = Callable[[Stand], None]


def legs(experiment: Experiment, methods: Sequence[str], seeds: Sequence[int]) -> list[Leg]:
    """Return every run of a comparison, seed by seed. Raises `ExperimentError`."""
    found = list[Leg]()
    for name in methods:
        if name not in NAMES:
            raise ExperimentError(f"unknown method {name!r}; known: {', '.join(NAMES)}")
    widths = sorted({tier.width for tier in experiment.tiers.values() if tier.devices})
    for seed in seeds:
        for name in methods:
            # Options of other methods must not make this run another one.
            options = {key: value for key, value in experiment.methods.items() if key == name}
            method = "fedavg" if name == DEDICATED else name
            home = experiment.changed(method=method, seed=seed, methods=options)
            found += [Leg(name, seed, home, width) for width in (widths if name == DEDICATED else [None])]
    return found


class Files:
    """What a comparison keeps in its folder: for each run a checkpoint, then its result; tied to its experiment."""

    def __init__(self, folder: Path) -> None:
        """Use `folder/runs`."""
        self._folder = folder / "runs"

    def checkpoint(self, leg: Leg) -> Checkpoint:
        """Return where a run is kept until it has a result."""
        return Checkpoint(self._folder / f"{leg.name}.checkpoint", leg.experiment)

    def read(self, leg: Leg) -> RunResult | None:
        """Return a finished run, or None. Raises `ExperimentError` if it is of another experiment."""
        path = self._result(leg)
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text())
            if document["label"] == _label(leg):
                return RUN_RESULT.validate_python(document["result"])
        except ValidationError as error:
            raise ExperimentError(f"{path}: not the result of a run: {one_line(error)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{path}: not the result of a run: {error!r}") from None
        raise ExperimentError(
            f"{path} is a run of another experiment; start afresh with --fresh or choose another folder"
        )

    def write(self, leg: Leg, result: RunResult) -> None:
        """Write a finished run, whole or not at all."""
        document = {"label": _label(leg), "result": RUN_RESULT.dump_python(result, mode="json")}
        write_bytes(self._result(leg), (json.dumps(document) + "\n").encode())

    def remove(self, leg: Leg) -> None:
        """Remove a run, finished or not."""
        self.checkpoint(leg).remove()
        self._result(leg).unlink(missing_ok=True)

    def _result(self, leg: Leg) -> Path:
        return self._folder / f"{leg.name}.json"


def compare(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    tell: Tell = lambda stand: None,
    *,
    jobs: int = 1,
    target: float | None = None,
    fresh: bool = False,
) -> Comparison:
    """Run what is not yet in `folder`, going on with unfinished runs, and return all of it.

    Whatever is wrong with a method or a file is found before anything is run. Results do not depend on `jobs`, the
    number of processes that run at a time. `fresh` forgets what is in `folder` of these runs. Raises
    `ExperimentError`, and what `make_federation` and `simulate` raise.
    """
    methods, seeds, files = list(dict.fromkeys(methods)), list(dict.fromkeys(seeds)), Files(folder)
    if not methods or not seeds:
        raise ExperimentError("nothing to compare: at least one method and one seed are needed")
    if jobs > 1 and experiment.engine in ALONE:
        raise ExperimentError(
            f"engine {experiment.engine} takes every core for one run; with {jobs} jobs it must be loop or batched"
        )
    todo = legs(experiment, methods, seeds)
    if fresh:
        for leg in todo:
            files.remove(leg)
    found = {leg.name: result for leg in todo if (result := files.read(leg))}
    left = [leg for leg in todo if leg.name not in found]
    _check(left, files)
    for leg in todo:
        if leg.name in found:
            files.checkpoint(leg).remove()
            tell(Stand(leg, len(found[leg.name].rounds), found[leg.name].accuracy, done=True))
    if jobs > 1 and len(left) > 1:
        from diastole.simulations.compare_jobs import run_all

        runs = run_all(left, folder, min(jobs, len(left)), tell)
    else:
        runs = ((leg.name, run(leg, folder, tell)) for leg in left)
    with closing(runs):
        found |= dict(runs)
    return _collect(experiment, methods, seeds, [(leg, found[leg.name]) for leg in todo], target)


def run(leg: Leg, folder: Path, tell: Tell) -> RunResult:
    """Run one leg, from its checkpoint if there is one, write its result and return it."""
    files, federation = Files(folder), make_federation(leg.experiment, _dataset(leg.experiment))
    data = digest(federation)

    def observe(event: Event) -> None:
        if isinstance(event, RunStarted):
            tell(Stand(leg, event.closed))
        elif isinstance(event, RoundClosed):
            tell(Stand(leg, event.round, event.accuracy))

    outcome = simulate(federation, (observe,), files.checkpoint(leg))
    result = _result(leg, federation, outcome, data)
    files.write(leg, result)
    files.checkpoint(leg).remove()
    tell(Stand(leg, len(result.rounds), result.accuracy, done=True))
    return result


def digest(federation: Federation) -> str:
    """Return the SHA-256 of every device's name and examples, of the proxy set and of the test set."""
    total = hashlib.sha256()

    def add(name: str, examples: Examples) -> None:
        total.update(f"{name} {tuple(examples.x.shape)}".encode())
        for tensor in (examples.x, examples.y):
            total.update(tensor.contiguous().numpy().data)

    for name, device in federation.devices.items():
        add(name, device.examples)
    if federation.proxy:
        add("proxy training", federation.proxy.training)
        add("proxy validation", federation.proxy.validation)
    add("test", federation.test)
    return total.hexdigest()


def _check(todo: Sequence[Leg], files: Files) -> None:
    """Raise what would otherwise be raised in the middle of a long comparison."""
    if not todo:
        return
    federation = make_federation(todo[0].experiment, _dataset(todo[0].experiment))
    for leg in todo:
        files.checkpoint(leg).check()
        if leg.seed == todo[0].seed:
            replace(federation, experiment=leg.experiment).compressor()


def _result(leg: Leg, federation: Federation, outcome: Outcome, data: str) -> RunResult:
    report = Report(federation, outcome, {})
    rows = [row for row in report.tiers() if row.devices]
    sizes = {row.tier: row.spec for row in rows}
    if leg.width is not None:
        own = _own_sizes(leg, outcome)
        sizes = {tier: size if own[tier] == size else "" for tier, size in sizes.items()}
    accounts: dict[str, list[tuple[int, int]]] = {tier: [] for tier in sizes}
    for device in report.devices():
        accounts[device.tier].append((device.bytes_down + device.bytes_up, device.macs))
    rounds = tuple(
        RoundResult(
            round=closed.round,
            accuracy=closed.accuracy,
            tiers={t: closed.tier_accuracy[size] for t, size in sizes.items() if size in closed.tier_accuracy},
            bytes=closed.bytes_down + closed.bytes_up,
            macs=closed.macs,
            seconds=closed.seconds,
            wall_seconds=closed.wall_seconds,
            server_seconds=closed.server_seconds,
        )
        for closed in outcome.rounds
    )
    tiers = tuple(
        TierResult(
            tier=row.tier,
            devices=row.devices,
            size=sizes[row.tier],
            accuracy=row.accuracy if sizes[row.tier] else None,
            memory=row.memory if sizes[row.tier] else None,
            bytes=sum(moved for moved, _ in accounts[row.tier]) / row.devices,
            macs=sum(macs for _, macs in accounts[row.tier]) / row.devices,
        )
        for row in rows
    )
    return RunResult(leg.method, leg.seed, data, rounds, tiers)


def _own_sizes(leg: Leg, outcome: Outcome) -> Mapping[str, str]:
    """Return the size that each tier's devices would take of all widths, by their budgets."""
    home = make_federation(leg.home.changed(method="width"), _dataset(leg.home))
    offered = replace(outcome, offers=home.compressor().specs())
    return {row.tier: row.spec for row in Report(home, offered, {}).tiers()}


def _collect(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    found: Sequence[tuple[Leg, RunResult]],
    target: float | None,
) -> Comparison:
    for seed in seeds:
        data = {result.data: leg.name for leg, result in found if leg.seed == seed}
        if len(data) > 1:
            raise ExperimentError(
                f"runs {' and '.join(data.values())} had different data; "
                "the data set has changed, start afresh with --fresh"
            )
    runs = {}
    for method in methods:
        parts = [[result for leg, result in found if (leg.method, leg.seed) == (method, seed)] for seed in seeds]
        runs[method] = [together(part) for part in parts]
    document = experiment.model_dump(mode="json", exclude={"method", "seed"})
    return Comparison(document, methods, seeds, runs, target)


def _label(leg: Leg) -> str:
    return label(leg.experiment, leg.home)


def _dataset(experiment: Experiment) -> Dataset:
    return _loaded(experiment.data.name, experiment.data.path, experiment.seed)


@lru_cache(maxsize=1)
def _loaded(name: str, path: Path | None, seed: int) -> Dataset:
    return load(name, path, seed)
