"""Comparisons and sweeps from Python."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diastole._bar import Bar
from diastole._experiment import Experiment
from diastole._run import loaded
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.runs import RunResult
from diastole.experiments.errors import ExperimentError
from diastole.experiments.sweep.result import SweepResult
from diastole.experiments.sweep.tuned import Tuned
from diastole.models import metrics
from diastole.proto.missing import needed
from diastole.simulations import compare as comparing
from diastole.simulations import sweep as sweeping
from diastole.simulations.compared import ComparedRun, Files, known, planned_runs
from diastole.simulations.equal import among, equalise, kinds_of
from diastole.simulations.tuned import earlier, joined, values_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep came to.

    Attributes:
        result: every trial of every method.
        swept: the experiment.

    """

    result: SweepResult
    swept: Experiment

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a trial: method, number, values by key, and the metric's mean over the seeds."""
        found = self.result
        return [
            {"method": method, "trial": trial.number} | dict(trial.values) | {found.metric: trial.score.mean}
            for method, trials in found.trials.items()
            for trial in trials
        ]

    def frame(self) -> "pandas.DataFrame":
        """Return `rows` as a pandas `DataFrame`. Raises `ExperimentError` without pandas."""
        return _frame(self.rows)

    def best(self, method: str) -> dict[str, Any]:
        """Return a method's best values, by key."""
        return self.result.values[method]

    def experiment(self, method: str) -> Experiment:
        """Return the experiment with a method and its best values."""
        changes = {key.replace(".", "__"): value for key, value in self.best(method).items()}
        return self.swept.changed(method=method, sweep=None, **changes)

    def save(self, folder: Path | str) -> Path:
        """Write `tuned.json` into a folder, which `compare(tuned=folder)` uses, and return its path.

        Raises `ExperimentError` if a method has no values, or if the folder has values for another experiment.
        """
        settings, folder = self.swept.settings, Path(folder)
        files = Files(folder, self.swept.given)
        before = earlier(settings, list(self.result.trials), files)
        return joined(settings, before, self.result, "diastole.sweep(...)", files).write(folder)

    def plot(self) -> "Figure":
        """Return a matplotlib figure of the metric by parameter. Raises `ExperimentError` without matplotlib."""
        from diastole.experiments.report.figures import check_drawing, shown
        from diastole.experiments.sweep.picture import figure

        check_drawing()
        return shown(figure(self.result))

    def __str__(self) -> str:
        found, lines = self.result, [f"by {self.result.metric} on {self.result.selected_on}"]
        for method in found.trials:
            values = ", ".join(f"{key} {value}" for key, value in self.best(method).items())
            score = found.best(method).score.mean or 0.0
            lines.append(f"{method}: {metrics.shown(found.of, score) if found.of else f'{score:g}'} with {values}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Table:
    """Methods side by side.

    Attributes:
        comparison: every run, round by round.
        sweep: how each method's own values were chosen, if they were.

    """

    comparison: Comparison
    sweep: Sweep | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a run: method, seed and its figures by name; shares are in [0, 1]."""
        found = self.comparison
        return [
            {"method": method, "seed": run.seed} | run.figures(found.target, virtual=found.virtual)
            for method, runs in found.runs.items()
            for run in runs
        ]

    def frame(self) -> "pandas.DataFrame":
        """Return `rows` as a pandas `DataFrame`. Raises `ExperimentError` without pandas."""
        return _frame(self.rows)

    def plot(self) -> "Figure":
        """Return a matplotlib figure of scores against costs. Raises `ExperimentError` without matplotlib."""
        from diastole.experiments.comparison.picture import figure
        from diastole.experiments.report.figures import check_drawing, shown

        check_drawing()
        return shown(figure(self.comparison))

    def __str__(self) -> str:
        lines, metric = [], self.comparison.metric
        for method, row in self.comparison.summary().items():
            mean = {"global": row[metric].mean} | {tier: row[f"{metric}/{tier}"].mean for tier in self.comparison.tiers}
            found = (f"{what} {'-' if value is None else metrics.shown(metric, value)}" for what, value in mean.items())
            lines.append(f"{method}: {', '.join(found)}")
        return "\n".join(lines)


def sweep(
    experiment: Experiment | Path | str,
    methods: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    folder: Path | str | None = None,
    jobs: int = 1,
    track: Sequence[str] = (),
    progress: bool | None = None,
    **plan: Any,
) -> Sweep:
    """Try values of an experiment's keys for each method, and choose the best; never on the test set.

    Args:
        experiment: what to sweep, or the path of its file, whose `[sweep]` holds unless these arguments say otherwise.
        methods: and baselines, by name.
        parameters: for each key, such as "training.learning_rate", a list of values or a range,
            `{"low": 0.001, "high": 0.1, "log": True}`.
        trials: drawn by Optuna, for each method; None for every combination of lists.
        folder: keeps the trials, so that the same call goes on after it was stopped; by default they are not kept.
        jobs: runs at a time, each in a process of its own.
        track: names of trackers of every run's curves.
        progress: show a bar; by default in a terminal or notebook.
        plan: other keys of `[sweep]`, such as `seeds=2` or `validation="proxy"`.

    Raises `DiastoleError` in one line.

    """
    experiment = loaded(experiment)
    given = experiment.settings.sweep
    if parameters is not None:
        plan |= {"parameters": dict(parameters), "trials": trials}
    elif trials is not None:
        plan["trials"] = trials
    if plan:
        experiment = experiment.changed(sweep=(given.model_dump() if given else {}) | plan)
    settings = experiment.settings
    names = known(methods or (settings.sweep.methods if settings.sweep else ()))
    runs = sweeping.planned_count(settings, names)
    with _place(folder) as place, Bar("rounds of all trials", progress) as bar:
        bar.total(runs * settings.rounds.count)
        found = sweeping.sweep(settings, names, place, bar.standing, jobs=jobs, track=track, dataset=experiment.given)
    return Sweep(found, experiment)


def compare(
    experiment: Experiment | Path | str,
    methods: Sequence[str],
    seeds: int = 3,
    *,
    folder: Path | str | None = None,
    jobs: int = 1,
    target: float | None = None,
    track: Sequence[str] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    tuned: Path | str | None = None,
    equal: Sequence[str] = (),
    anchor: str = "",
    most_rounds: int | None = None,
    against: str = "",
    progress: bool | None = None,
) -> Table:
    """Run methods on the same data, devices, rounds, budgets and proxy set.

    Args:
        experiment: what to run, or the path of its file; its method does not matter. With `[sweep]` in it, each method
            is compared at its best values.
        methods: and baselines, by name.
        seeds: how many, from the experiment's own on.
        folder: keeps the runs, so that the same call goes on after it was stopped; by default they are not kept.
        jobs: runs at a time, each in a process of its own.
        target: global score by the experiment's first metric, shares in [0, 1], the time to which is told.
        track: names of trackers; each run's curves go to `folder/runs/NAME`.
        grid: values to try for each method, by key, in the place of `[sweep]`.
        tuned: compare at the values that `diastole tune` has found: its folder, or its `tuned.json`.
        equal: also compare the methods after as much spending as the anchor's: "bytes", "macs", or both.
        anchor: that method; by default the costliest that serves every device.
        most_rounds: that a method may have for that; by default five times the experiment's.
        against: give differences from this method, and not from the best of the others.
        progress: show a bar; by default in a terminal or notebook.

    Raises `DiastoleError` in one line.

    """
    experiment, swept = loaded(experiment), None
    settings, names = experiment.settings, known(methods)
    kinds, values, sources = kinds_of(",".join(equal)), dict[str, dict[str, Any]](), dict[str, Any]()
    anchor, against = among("anchor", anchor, names), among("against", against, names)
    if tuned is not None:
        if grid:
            raise ExperimentError("tuned and grid: values come from one of them")
        where = Path(tuned)
        values, sources = values_of(Tuned.read(where), where, settings, names, Files(where, experiment.given))
    if track and folder is None:
        raise ExperimentError(f"track: {', '.join(track)} need a folder to write to; folder= is not given")
    with _place(folder) as place:
        if tuned is None and (grid or (settings.sweep and settings.sweep.parameters)):
            swept = sweep(experiment, names, grid, folder=place / "sweep", jobs=jobs, track=track, progress=progress)
            values = swept.result.values
        numbers = range(settings.seed, settings.seed + seeds)
        runs, files = planned_runs(settings, names, numbers, values), Files(place, experiment.given)
        with Bar("rounds of all runs", progress) as bar:
            bar.total(len(runs) * settings.rounds.count)
            found = comparing.compare(
                settings,
                names,
                numbers,
                place,
                bar.standing,
                jobs=jobs,
                target=target,
                track=track,
                dataset=experiment.given,
                values=values,
            )

        def finish(runs: Sequence[ComparedRun]) -> Mapping[str, RunResult]:
            with Bar("rounds of longer runs", progress) as bar:
                bar.total(sum(run.home.rounds.count for run in runs))
                return comparing.finished(runs, files, bar.standing, jobs=jobs, track=track)

        found = replace(found, against=against, tuned=sources)
        if kinds:
            found = equalise(settings, found, files, kinds, finish, anchor=anchor, most=most_rounds, values=values)
    return Table(found, swept)


@contextmanager
def _place(folder: Path | str | None) -> Iterator[Path]:
    """Give the folder, or one for the moment."""
    if folder is not None:
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def _frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    with needed(ExperimentError, "a frame (.rows needs none)", "pandas", "diastole[tables]"):
        import pandas
    return pandas.DataFrame(rows)
