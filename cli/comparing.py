"""What `diastole compare` reads, shows and writes."""

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diastole.cli import compare_tables
from diastole.cli.console import score
from diastole.cli.options import print_json
from diastole.experiments import toml
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.equal import By
from diastole.experiments.comparison.picture import figure
from diastole.experiments.comparison.runs import RunResult
from diastole.experiments.report.figures import can_draw, write_figures
from diastole.experiments.sweep.result import SweepResult
from diastole.experiments.sweep.space import grid as values_of
from diastole.models.methods.registry import METHODS
from diastole.proto.files import write_bytes
from diastole.simulations.compare import finished
from diastole.simulations.compared import NEUTRAL, ComparedRun, Files, Standing
from diastole.simulations.equal import Finish, equalise
from diastole.simulations.simulation import Simulation


def settings_of(path: Path, overrides: Sequence[str], methods: Sequence[str], grid: Sequence[str]) -> Simulation:
    """Return the experiment, with what is to be tried; its method is a neutral one."""
    document = toml.read(path, overrides)
    table = document.get("sweep")
    names = methods or (table.get("methods") if isinstance(table, dict) else None) or [NEUTRAL]
    # The file's own method is not run, so it must not be what is wrong with the file.
    neutral = NEUTRAL if names[0] not in METHODS or METHODS[names[0]].each_width else names[0]
    if grid:
        table = table if isinstance(table, dict) else {}
        document["sweep"] = table | {"parameters": values_of(grid)}
        document["sweep"].pop("trials", None)
    return Simulation.parse(document | {"method": neutral}, str(path))


def with_equal(
    settings: Simulation,
    files: Files,
    found: Comparison,
    values: Mapping[str, Mapping[str, Any]],
    finish: Finish,
    *,
    kinds: Sequence[By],
    anchor: str,
    most: int | None,
    against: str,
    sources: Mapping[str, Any],
    fresh: bool,
) -> Comparison:
    """Return a comparison with the tables in which spending is equal, and what else was asked for."""
    found = replace(found, against=against, tuned=sources)
    if not kinds:
        return found
    return equalise(settings, found, files, kinds, finish, anchor=anchor, most=most, values=values, fresh=fresh)


def playing(console: Console, files: Files, jobs: int, track: Sequence[str]) -> Finish:
    """Return what plays runs, shows how they go, and returns what they came to."""

    def play(runs: Sequence[ComparedRun]) -> Mapping[str, RunResult]:
        with View(console, len(runs), sum(run.home.rounds.count for run in runs)) as view:
            return finished(runs, files, view, jobs=jobs, track=track)

    return play


def report(
    console: Console, found: Comparison, paths: Sequence[Path], searched: SweepResult | None = None, *, json: bool
) -> None:
    """Print a comparison, and where it was written; for programs as one document."""
    if json:
        print_json(found.as_dict() | ({"sweep": searched.as_dict()} if searched else {}))
        return
    for grid in compare_tables.grids(found):
        console.print(grid.rich())
    console.print(compare_tables.ranking(found), soft_wrap=True)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def write(comparison: Comparison, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write a comparison, with pictures of these kinds, and return the paths."""
    paths = [folder / f"comparison.{kind}" for kind in ("json", "md")]
    write_bytes(paths[0], (jsonlib.dumps(comparison.as_dict(), indent=2) + "\n").encode())
    write_bytes(paths[1], compare_tables.markdown(comparison).encode())
    return [*paths, *draw(comparison, folder, kinds)]


def draw(comparison: Comparison, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the pictures of a comparison, and return their paths."""
    return write_figures(folder, {"comparison": figure(comparison) if can_draw() else None}, kinds)


class View:
    """Shows how runs go: a line for each that is done and, on a terminal, bars with the time to go below."""

    def __init__(self, console: Console, runs: int, rounds: int) -> None:
        """Show so many runs, which have so many rounds in all."""
        self._console = console
        self._runs = runs
        self._closed = dict[str, int]()
        self._done = 0
        self._tasks = dict[str, TaskID]()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            # Rounds may take minutes.
            speed_estimate_period=3600.0,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("rounds of all runs", total=rounds, score="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, standing: Standing) -> None:
        """Show how a run stands."""
        name, before = standing.run.name, self._closed.get(standing.run.name)
        count = standing.run.home.rounds.count
        self._closed[name] = standing.round
        if before is None:
            # Rounds of an earlier call say nothing of this one's speed.
            self._bars.tasks[0].completed += standing.round
            self._tasks[name] = self._bars.add_task(name, total=count, score="", completed=standing.round)
        else:
            self._bars.update(self._all, advance=standing.round - before)
            self._bars.update(self._tasks[name], completed=standing.round, score=self._shown(standing))
        if standing.done:
            self._done += 1
            self._bars.remove_task(self._tasks[name])
            earlier = ", of an earlier call" if before is None else ""
            # A run that ended itself leaves rounds that nobody will run.
            self._bars.update(self._all, advance=count - standing.round)
            text = f"{self._done}/{self._runs} runs done: {name}, {self._shown(standing)}{earlier}"
            self._console.print(text, soft_wrap=True)

    @staticmethod
    def _shown(standing: Standing) -> str:
        return score(standing.metric, standing.score)
