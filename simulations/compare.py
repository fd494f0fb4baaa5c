"""Run methods side by side: the same data, devices, rounds, budgets and proxy set; only the method differs."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.runs import RunResult, TierResult, together
from diastole.experiments.data.dataset import PART, Dataset
from diastole.experiments.errors import ExperimentError
from diastole.experiments.initial import digest as digest_of_start
from diastole.experiments.personal import spread
from diastole.experiments.report.metric import is_share
from diastole.experiments.report.trackers import check_names
from diastole.experiments.report.trackers import track as tracking
from diastole.experiments.result import Result
from diastole.experiments.run import make_run
from diastole.models.allowed import allow
from diastole.models.training import Examples
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed, RunStarted
from diastole.simulations.compared import NONE, ComparedRun, Files, Screen, Standing, Tell, known, planned_runs
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines.registry import ENGINES
from diastole.simulations.pruning import Pruner, round_of, sizes_of
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


def compare(
    simulation: Simulation,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    tell: Tell = lambda standing: None,
    *,
    jobs: int = 1,
    target: float | None = None,
    track: Sequence[str] = (),
    fresh: bool = False,
    dataset: Dataset | None = None,
    values: Mapping[str, Mapping[str, Any]] = NONE,
    screen: Screen | None = None,
) -> Comparison:
    """Run what is not yet in `folder`, going on with unfinished runs, and return all of it.

    Whatever is wrong with a method or a file is found before anything is run.

    Args:
        simulation: the experiment; its method and seed do not matter.
        methods: and baselines, by name.
        seeds: of the runs.
        folder: keeps them.
        tell: is called with how a run stands.
        jobs: the number of processes that run at a time, on which results do not depend.
        target: global score whose time is reported, by the metric that runs are judged by; shares in [0, 1].
        track: names of trackers (`experiments/report/trackers.py`); each run's curves go to `folder/runs/NAME`.
        fresh: forget what is in `folder` of these runs.
        dataset: in the place of the one that the experiment names, for one job.
        values: of keys of the experiment, for each method that has its own, such as a learning rate.
        screen: shows each run while it goes on; with several jobs `tell` alone is called.

    Raises `ExperimentError`, and what `make_federation` and `simulate` raise.

    """
    methods, seeds, files = known(methods), list(dict.fromkeys(seeds)), Files(folder, dataset)
    if not methods or not seeds:
        raise ExperimentError("nothing to compare: at least one method and one seed are needed")
    todo = planned_runs(simulation, methods, seeds, values)
    found = finished(todo, files, tell, jobs=jobs, track=track, fresh=fresh, target=target, screen=screen)
    return _collect(simulation, methods, seeds, [(run, found[run.name]) for run in todo], target, values)


def kept(
    simulation: Simulation,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    target: float | None = None,
    dataset: Dataset | None = None,
    values: Mapping[str, Mapping[str, Any]] = NONE,
) -> Comparison:
    """Return what `compare` has left in `folder` of these methods, without running anything.

    Raises `ExperimentError` if a run is not there, or not finished.
    """
    methods, todo = known(methods), planned_runs(simulation, known(methods), seeds, values)
    results = kept_runs(todo, Files(folder, dataset))
    found = [(run, results[run.name]) for run in todo]
    return _collect(simulation, methods, seeds, found, target, values)


def kept_runs(todo: Sequence[ComparedRun], files: Files) -> dict[str, RunResult]:
    """Return the results of runs that are there, by name. Raises `ExperimentError` for one that is not finished."""
    _allow(todo)
    found = {run.name: files.read(run) for run in todo}
    for run in todo:
        if found[run.name] is None:
            raise ExperimentError(
                f"{files.folder}: has no finished run {run.name}; compare --methods {run.method} makes it"
            )
    return {name: result for name, result in found.items() if result is not None}


def finished(
    todo: Sequence[ComparedRun],
    files: Files,
    tell: Tell,
    *,
    jobs: int = 1,
    track: Sequence[str] = (),
    fresh: bool = False,
    target: float | None = None,
    screen: Screen | None = None,
) -> dict[str, RunResult]:
    """Return the results of runs by name, having run what was not there. Arguments are those of `compare`."""
    if not todo:
        return {}
    check_names(track)
    engine = todo[0].home.engine
    if jobs > 1 and ENGINES[engine].alone:
        raise ExperimentError(
            f"engine {engine} takes every core for one run; with {jobs} jobs it must be loop or batched"
        )
    if jobs > 1 and files.given:
        raise ExperimentError(f"{jobs} jobs: processes cannot share tensors of your own; one job is accepted")
    _allow(todo)
    if fresh:
        for run in todo:
            files.remove(run)
    found = {run.name: result for run in todo if (result := files.read(run))}
    left = list({run.name: run for run in todo if run.name not in found}.values())
    _check(left, files, target)
    for run in todo:
        if run.name in found:
            result = found[run.name]
            if not result.pruned:
                files.checkpoint(run).finish()
            tell(Standing(run, len(result.rounds), result.score, done=True, metric=result.metric))
    if jobs > 1 and len(left) > 1:
        from diastole.simulations.compare_jobs import run_all

        runs = run_all(left, files.folder, min(jobs, len(left)), tell, track)
    else:
        runs = ((run.name, play(run, files, tell, track, screen)) for run in left)
    with closing(runs):
        return found | dict(runs)


def _allow(todo: Sequence[ComparedRun]) -> None:
    """Let a metric of one's own be asked which way is better, even if every run is of an earlier call."""
    for name in dict.fromkeys(name for run in todo for name in run.home.functions):
        allow(name)


def play(
    run: ComparedRun, files: Files, tell: Tell, track: Sequence[str] = (), screen: Screen | None = None
) -> RunResult:
    """Simulate one run, from its checkpoint if there is one, write its result and return it."""
    federation = make_federation(run.simulation, files.dataset(run))
    data, pruner, metric = digest(federation), Pruner(run, federation), federation.run.metrics[0]

    def observe(event: Event) -> None:
        if isinstance(event, RunStarted):
            tell(Standing(run, event.closed))
        elif isinstance(event, RoundClosed):
            tell(Standing(run, event.round, (event.scores or {}).get(metric), metric=metric))

    def begun(coordinator: Coordinator) -> None:
        pruner.begun(coordinator)
        if screen:
            screen.begun(run.name, coordinator)

    checkpoint, curves = files.checkpoint(run), files.curves(run)
    found = checkpoint.check()
    if track:
        curves.mkdir(parents=True, exist_ok=True)
    named = run.simulation.model_copy(update={"name": f"{run.simulation.name}: {run.name}"})
    with tracking(list(track), named, curves, found.closed if found else ()) as trackers:
        observers = (observe, pruner, *trackers, *((screen.watch(run.name, federation),) if screen else ()))
        result = _result(run, files, simulate(federation, observers, checkpoint, begun), data)
    result = replace(result, pruned=pruner.ended)
    files.write(run, result)
    # One that was ended may be wanted whole by another sweep.
    if not result.pruned:
        checkpoint.finish()
    tell(Standing(run, len(result.rounds), result.score, done=True, metric=metric))
    return result


def digest(federation: Federation) -> str:
    """Return the SHA-256 of every device's name and examples, of the proxy set and of the test set."""
    total = hashlib.sha256()

    def add(name: str, examples: Examples) -> None:
        total.update(f"{name} {tuple(examples.x.shape)}".encode())
        # A part at a time: the test set may be larger than memory.
        for some in (*torch.split(examples.x, PART), *torch.split(examples.y, PART)):
            total.update(some.contiguous().numpy().data)

    for name, device in federation.devices.items():
        add(name, device.examples)
        if device.kept is not None:
            add(f"{name} keeps", device.kept_examples)
    proxy = federation.run.proxy
    if proxy:
        add("proxy training", proxy.training)
        add("proxy validation", proxy.validation)
    add("test", federation.run.test)
    return total.hexdigest()


def _check(todo: Sequence[ComparedRun], files: Files, target: float | None) -> None:
    """Raise what would otherwise be raised in the middle of a long comparison."""
    if not todo:
        return
    made = make_run(todo[0].simulation, files.dataset(todo[0]))
    if target is not None and is_share(made.metrics[0]) and not 0 <= target <= 1:
        raise ExperimentError(f"target {target:g}: {made.metrics[0]} is a share; 0 to 1 is accepted")
    for run in todo:
        files.checkpoint(run).check()
        if run.seed == todo[0].seed:
            each = replace(made, experiment=run.simulation)
            method = each.method()
            if each.model.frozen or digest_of_start(run.simulation):
                each.begin(method)


def _result(run: ComparedRun, files: Files, result: Result, data: str) -> RunResult:
    rows = [row for row in result.tiers if row.devices]
    sizes = {row.tier: row.spec for row in rows}
    if run.width is not None:
        # What each would take of all widths, by its budgets.
        own = sizes_of(make_federation(run.home.changed(method="width"), files.dataset(run)))
        sizes = {tier: size if own[tier] == size else "" for tier, size in sizes.items()}
    accounts: dict[str, list[tuple[int, int]]] = {tier: [] for tier in sizes}
    for device in result.devices:
        accounts[device.tier].append((device.bytes_down + device.bytes_up, device.macs))
    rounds = tuple(round_of(closed, sizes) for closed in result.rounds)
    tiers = tuple(
        TierResult(
            tier=row.tier,
            devices=row.devices,
            size=sizes[row.tier],
            scores=row.scores if sizes[row.tier] else {},
            memory=row.memory if sizes[row.tier] else None,
            bytes=sum(moved for moved, _ in accounts[row.tier]) / row.devices,
            macs=sum(macs for _, macs in accounts[row.tier]) / row.devices,
        )
        for row in rows
    )
    kept = spread(result.personal, result.metric) if result.personal else {}
    personal = {when: found.mean for when, found in kept.items()}
    seconds, clock = _training(result)
    return RunResult(run.method, run.seed, result.metrics, data, rounds, tiers, personal, seconds, clock)


def _training(result: Result) -> tuple[float | None, str]:
    """Return the seconds that devices trained for, and by which clock; of a field, whose seconds are virtual, none."""
    accounts = result.accounts.values()
    busy = [account.processor for account in accounts if account.processor is not None]
    if len(busy) == len(accounts):
        return sum(busy), "processor"
    return (None, "") if result.field else (sum(account.seconds for account in accounts), "wall")


def _collect(
    simulation: Simulation,
    methods: Sequence[str],
    seeds: Sequence[int],
    found: Sequence[tuple[ComparedRun, RunResult]],
    target: float | None,
    values: Mapping[str, Mapping[str, Any]],
) -> Comparison:
    for seed in seeds:
        data = {result.data: run.name for run, result in found if run.seed == seed}
        if len(data) > 1:
            raise ExperimentError(
                f"runs {' and '.join(data.values())} had different data: the data set has changed; start afresh "
                "(--fresh)"
            )
    runs = {}
    for method in methods:
        runs[method] = [one(found, method, seed) for seed in seeds]
    document = document_of(simulation)
    if values:
        document["values"] = {method: dict(own) for method, own in values.items()}
    mixture = simulation.population.mixture
    return Comparison(document, methods, seeds, runs, target, mixture.name if mixture else "")


def one(found: Sequence[tuple[ComparedRun, RunResult]], method: str, seed: int) -> RunResult:
    """Return the run of a method and seed, its federations taken together if it is several."""
    return together([result for run, result in found if (run.method, run.seed) == (method, seed)])


def document_of(simulation: Simulation) -> dict[str, Any]:
    """Return what was asked for, without what a comparison varies; JSON."""
    return simulation.model_dump(mode="json", exclude={"method", "seed"})
