"""`diastole compare`: methods side by side."""

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import typer
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
from diastole.cli.options import DataPath, Json, check_folder, consoles, data_overrides, note_pictures, print_json
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.picture import draw
from diastole.experiments.report.picture import can_draw
from diastole.models.methods.registry import METHODS
from diastole.server.checkpoints import write_bytes
from diastole.simulations.compare import compare as play_all
from diastole.simulations.compared import NEUTRAL, Standing, known, planned_runs
from diastole.simulations.simulation import Simulation


def compare(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its method does not matter.")],
    methods: Annotated[str, typer.Option(help="Methods and baselines, separated by commas.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted up from the experiment's own.")] = 3,
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the results.")] = Path("comparison"),
    target: Annotated[float | None, typer.Option(help="Also report the time to this score.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at the same time, each in a process of its own.")] = 1,
    fresh: Annotated[bool, typer.Option(help="Delete what an earlier call has left of these runs.")] = False,
    json: Json = False,
) -> None:
    """Run methods on the same data, devices, partition, rounds, budgets and proxy set, and compare them.

    Given again after it was stopped or killed, it goes on; finished runs are not run again.

    Example: `diastole compare simulations/examples/digits.toml --methods width,conv,fedavg --seeds 3`
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    # The file's own method is not run, so it must not be what is wrong with the file.
    neutral = NEUTRAL if not names or names[0] not in METHODS or METHODS[names[0]].each_width else names[0]
    settings = Simulation.load(experiment, [*data_overrides(data), *(change or []), f'method="{neutral}"'])
    numbers = range(settings.seed, settings.seed + seeds)
    console = consoles(json)
    todo = {run.name: settings.rounds.count for run in planned_runs(settings, known(names), numbers)}
    check_folder("--out", out)
    note_pictures(console)
    try:
        with View(console, todo) as view:
            found = play_all(settings, names, numbers, out, view, jobs=jobs, target=target, fresh=fresh)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.", highlight=False)
        raise typer.Exit(130) from None
    paths = _write(found, out)
    if json:
        print_json(found.as_dict())
        return
    for grid in compare_tables.grids(found):
        console.print(grid.rich())
    console.print(compare_tables.ranking(found), highlight=False, soft_wrap=True)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    paths = [folder / f"comparison.{kind}" for kind in ("json", "md", *(("png",) if can_draw() else ()))]
    write_bytes(paths[0], (jsonlib.dumps(comparison.as_dict(), indent=2) + "\n").encode())
    write_bytes(paths[1], compare_tables.markdown(comparison).encode())
    if can_draw():
        write_bytes(paths[2], draw(comparison))
    return paths


class View:
    """Shows how runs go: a line for each that is done and, on a terminal, bars with the time to go below."""

    def __init__(self, console: Console, rounds: Mapping[str, int]) -> None:
        """Show runs, of so many rounds each, by name."""
        self._console = console
        self._rounds = rounds
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
        self._all = self._bars.add_task("rounds of all runs", total=sum(rounds.values()), score="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, standing: Standing) -> None:
        """Show how a run stands."""
        name, before = standing.run.name, self._closed.get(standing.run.name)
        self._closed[name] = standing.round
        if before is None:
            # Rounds of an earlier call say nothing of this one's speed.
            self._bars.tasks[0].completed += standing.round
            self._tasks[name] = self._bars.add_task(name, total=self._rounds[name], score="", completed=standing.round)
        else:
            self._bars.update(self._all, advance=standing.round - before)
            self._bars.update(self._tasks[name], completed=standing.round, score=self._shown(standing))
        if standing.done:
            self._done += 1
            self._bars.remove_task(self._tasks[name])
            earlier = ", of an earlier call" if before is None else ""
            # A run that ended itself leaves rounds that nobody will run.
            self._bars.update(self._all, advance=self._rounds[name] - standing.round)
            text = f"{self._done}/{len(self._rounds)} runs done: {name}, {self._shown(standing)}{earlier}"
            self._console.print(text, highlight=False, soft_wrap=True)

    @staticmethod
    def _shown(standing: Standing) -> str:
        return score(standing.metric, standing.score)
