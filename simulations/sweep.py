"""Try values of an experiment's keys, method by method, and choose; never on the test set."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from diastole.experiments.checkpoint import label
from diastole.experiments.comparison.runs import RunResult, metric_of
from diastole.experiments.comparison.spread import Spread
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.result import SweepResult, Trial
from diastole.experiments.sweep.space import Range, Sweep, combinations
from diastole.models.methods.registry import METHODS
from diastole.models.metrics import LOSS, Better, better
from diastole.proto.missing import needed
from diastole.simulations.compare import document_of, finished, one
from diastole.simulations.compared import ComparedRun, Files, Tell, known, planned_runs
from diastole.simulations.pruning import Curve, bars_of, curve_of
from diastole.simulations.searches import Drawn, Grid, Search
from diastole.simulations.simulation import Simulation


def sweep(
    simulation: Simulation,
    methods: Sequence[str],
    folder: Path,
    tell: Tell = lambda standing: None,
    *,
    jobs: int = 1,
    track: Sequence[str] = (),
    fresh: bool = False,
    dataset: Dataset | None = None,
) -> SweepResult:
    """Run the trials of `simulation.sweep` that are not yet in `folder`, and return what came of all of them.

    The methods are searched side by side, batch by batch, so that results do not depend on `jobs`. Arguments are those
    of `simulations.compare.compare`. Raises `ExperimentError`, and what that raises.
    """
    plan, names, files = planned(simulation, methods), known(methods), Files(folder, dataset)
    seeds = _seeds(simulation, plan)
    metric, of = _metric(simulation, plan, files.dataset(planned_runs(simulation, names[:1], seeds)[0]))
    direction = better(of) if of else "higher" if metric == "served_devices" else "lower"
    if fresh:
        forget(folder)
    searches = {name: _search(simulation, plan, name, files, direction) for name in names}
    tried = {name: list[Trial]() for name in names}
    curves = {name: list[Curve | None]() for name in names}

    def bars(name: str, number: int) -> list[tuple[int, float]]:
        if not plan.prune or METHODS[name].each_width:
            return []
        # What was known when the trial's batch was begun, whether or not that was in another process.
        whole = [curve for curve in curves[name][: number // plan.batch * plan.batch] if curve is not None]
        return [(at, bar) for at, bar in bars_of(whole, plan.prune) if at < simulation.rounds.count]

    def played(points: Sequence[tuple[str, int]], of: Sequence[int]) -> dict[tuple[str, int], list[RunResult]]:
        """Play these seeds of trials; those of the first seed may end early."""
        runs = dict[tuple[str, int], list[ComparedRun]]()
        for name, number in points:
            limits = bars(name, number) if of == seeds[:1] else []
            values = {name: searches[name].asked[number]}
            planned = planned_runs(simulation, [name], of, values, plan.validation)
            runs[name, number] = [replace(run, bars=limits, judged=metric) for run in planned]
        every = {run.name: run for of_one in runs.values() for run in of_one}
        found = finished(list(every.values()), files, tell, jobs=jobs, track=track)
        pairs = {point: [(run, found[run.name]) for run in of_one] for point, of_one in runs.items()}
        return {point: [one(of_one, point[0], seed) for seed in of] for point, of_one in pairs.items()}

    while True:
        # Those that an earlier call was told of come first: their runs are kept, and none of them is run twice.
        batch = {
            name: list(search.told)[len(tried[name]) :][: plan.batch] or search.ask()
            for name, search in searches.items()
        }
        points = [(name, number) for name, numbers in batch.items() for number in numbers]
        if not points:
            break
        firsts = played(points, seeds[:1])
        others = played([point for point in points if not firsts[point][0].pruned], seeds[1:])
        for name, number in points:
            first = firsts[name, number][0]
            runs, curve = [first, *others.get((name, number), [])], curve_of(first, metric)
            score = Spread(None, None, 0) if first.pruned else _score(runs, metric)
            ended = len(first.rounds) if first.pruned else 0
            at = (max(curve), curve[max(curve)]) if ended and curve else None
            curves[name].append(None if first.pruned else curve)
            tried[name].append(Trial(number, searches[name].asked[number], score, ended))
            if number not in searches[name].told:
                searches[name].tell(number, score.mean, at)
    return SweepResult(
        experiment=document_of(simulation),
        parameters=plan.model_dump(mode="json")["parameters"],
        metric=metric,
        of=of,
        better=direction,
        selected_on=selected_on(plan),
        seeds=seeds,
        trials=tried,
    )


def planned(simulation: Simulation, methods: Sequence[str]) -> Sweep:
    """Return what is swept, checked for these methods; raises `ExperimentError` for what cannot be."""
    plan, names = simulation.sweep, known(methods)
    if plan is None or not plan.parameters or not names:
        raise ExperimentError("nothing to sweep: a method, and [sweep] or a grid, are needed")
    for key in plan.parameters:
        if not any(key in plan.of(name) for name in names):
            raise ExperimentError(
                f"sweep.parameters: {key} is an option of no method here; there are {', '.join(names)}"
            )
    for name in names:
        for key, values in plan.of(name).items():
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                planned_runs(simulation, [name], [simulation.seed], {name: {key: value}})
    return plan


def planned_count(simulation: Simulation, methods: Sequence[str]) -> int:
    """Return the number of runs of a sweep. Raises `ExperimentError`."""
    plan = planned(simulation, methods)
    return sum(
        _total(plan, name) * len(planned_runs(simulation, [name], _seeds(simulation, plan))) for name in known(methods)
    )


def selected_on(plan: Sweep) -> str:
    """Return in words what a sweep selects on."""
    if plan.validation == "proxy":
        return "the validation part of the proxy set"
    return f"{plan.validation:.0%} of the training examples, held out"


def writer() -> Any:
    """Return tomli-w, by which experiments are written. Raises `ExperimentError` if it is not installed."""
    with needed(ExperimentError, "the best values as files", "tomli-w", "diastole[sweep]"):
        import tomli_w
    return tomli_w


def best_file(simulation: Simulation, result: SweepResult, method: str) -> str:
    """Return the text of an experiment, a TOML file, that runs a method with its best values."""
    tomli = writer()
    (run, *_) = planned_runs(simulation, [method], [simulation.seed], result.values)
    document = run.home.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    document |= {"method": method, "seed": simulation.seed}
    if run.home.data.path is not None:
        document["data"]["path"] = str(run.home.data.path.resolve())
    trial = result.best(method)
    head = f"# The best of {len(result.trials[method])} trials by {result.metric} on {result.selected_on}"
    return f"{head}: {trial.score.mean:.4g}.\n\n{tomli.dumps(document)}"


def forget(folder: Path) -> None:
    """Remove what a sweep has left in a folder, but for curves, which a run of the same name replaces."""
    for path in (folder / STUDIES, *(path for path in (folder / "runs").glob("*") if path.is_file())):
        path.unlink(missing_ok=True)


STUDIES = "trials.jsonl"


def _search(simulation: Simulation, plan: Sweep, name: str, files: Files, direction: Better) -> Search:
    parameters = plan.of(name)
    if plan.trials is None or not parameters:
        return Grid(parameters)
    first = planned_runs(simulation, [name], [simulation.seed], held=plan.validation)[0]
    document = plan.model_dump_json(exclude={"trials", "methods"})
    own = f"{label(files.digest(first), first.home)} {hashlib.sha256(document.encode()).hexdigest()}"
    return Drawn(files.folder / STUDIES, name, plan, simulation.seed, label=own, better=direction)


def _total(plan: Sweep, name: str) -> int:
    parameters = plan.of(name)
    return plan.trials if plan.trials and parameters else len(combinations(parameters))


def _seeds(simulation: Simulation, plan: Sweep) -> range:
    return range(simulation.seed, simulation.seed + plan.seeds)


def _metric(simulation: Simulation, plan: Sweep, dataset: Dataset) -> tuple[str, str]:
    """Return the figure that is compared, and the metric that it is a value of; no metric for a cost."""
    metrics = simulation.judged_by(dataset.train.y)
    scores = (*metrics, LOSS)
    figures = RunResult("", 0, metrics, "", (), ()).figures()
    tiers = [f"{name}/{group}" for name in scores for group in simulation.groups]
    figure = plan.metric or metrics[0]
    if figure not in (*figures, *tiers):
        raise ExperimentError(
            f"sweep.metric: {figure!r} is no figure of a run; accepted: {', '.join((*figures, *tiers))}"
        )
    name = metric_of(figure)
    return figure, name if name in scores else ""


def _score(runs: Sequence[RunResult], metric: str) -> Spread:
    """Return the metric over the seeds; without a mean unless every seed has it."""
    found = [run.figures().get(metric) for run in runs]
    known = [value for value in found if value is not None and isfinite(value)]
    return Spread.of(known) if len(known) == len(found) else Spread(None, None, len(known))
