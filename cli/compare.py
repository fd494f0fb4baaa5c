"""`diastole compare`: methods side by side."""

import json as jsonlib
from collections.abc import Sequence
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

from diastole.cli import compare_tables, sweep_tables
from diastole.cli.console import score
from diastole.cli.options import (
    DataPath,
    Figures,
    Json,
    Track,
    check_folder,
    consoles,
    data_overrides,
    note_pictures,
    print_json,
)
from diastole.experiments import toml
from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.picture import figure
from diastole.experiments.report.figures import can_draw, kinds_of, write_figures
from diastole.experiments.sweep.result import SweepResult, read_values
from diastole.experiments.sweep.space import grid as values_of
from diastole.models.methods.registry import METHODS
from diastole.proto.files import write_bytes
from diastole.simulations.compare import compare as play_all
from diastole.simulations.compare import kept
from diastole.simulations.compared import NEUTRAL, Standing, known, planned_runs
from diastole.simulations.simulation import Simulation
from diastole.simulations.sweep import planned_count, sweep


def compare(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its method does not matter.")],
    methods: Annotated[str, typer.Option(help="Methods and baselines, separated by commas.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted up from the experiment's own.")] = 3,
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Try values of a key, table.key=value,value, and compare at the best.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the results.")] = Path("comparison"),
    target: Annotated[float | None, typer.Option(help="Also report the time to this score.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at the same time, each in a process of its own.")] = 1,
    track: Track = None,
    figures: Figures = "png",
    show: Annotated[str, typer.Option(help="Draw only these methods, of runs that are there; nothing is run.")] = "",
    fresh: Annotated[bool, typer.Option(help="Delete what an earlier call has left of these runs.")] = False,
    json: Json = False,
) -> None:
    """Run methods on the same data, devices, partition, rounds, budgets and proxy set, and compare them.

    Given again after it was stopped or killed, it goes on; finished runs are not run again, and go on if they are given
    more rounds. With --grid, or [sweep] in the file, values are tried first, on examples that are not the test's.

    Example: `diastole compare simulations/examples/digits.toml --methods width,conv,fedavg --seeds 3`
    """
    given = [name.strip() for name in (show or methods).split(",") if name.strip()]
    settings = _settings(experiment, [*data_overrides(data), *(change or [])], given, grid or [])
    sweeps = settings.sweep is not None and bool(settings.sweep.parameters)
    names = known(given or (settings.sweep.methods if settings.sweep else ()))
    numbers = range(settings.seed, settings.seed + seeds)
    console, kinds = consoles(json), kinds_of(figures)
    check_folder("--out", out)
    todo, runs = planned_runs(settings, names, numbers), planned_count(settings, names) if sweeps else 0
    note_pictures(console)
    if show:
        values = read_values(out, names) if sweeps else {}
        found = kept(settings, names, numbers, out, target=target, values=values)
        _report(console, found, _draw(found, out, kinds), json=json)
        return
    searched, paths = None, list[Path]()
    try:
        if sweeps:
            with View(console, runs, runs * settings.rounds.count) as view:
                searched = sweep(settings, names, out / "sweep", view, jobs=jobs, track=track or (), fresh=fresh)
            paths = sweep_tables.write(searched, settings, out, kinds)
            console.print(sweep_tables.best(searched).rich())
        with View(console, len(todo), len(todo) * settings.rounds.count) as view:
            values = searched.values if searched else {}
            found = play_all(
                settings,
                names,
                numbers,
                out,
                view,
                jobs=jobs,
                target=target,
                track=track or (),
                fresh=fresh,
                values=values,
            )
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None
    _report(console, found, [*paths, *_write(found, out, kinds)], searched, json=json)


def _settings(path: Path, overrides: Sequence[str], methods: Sequence[str], grid: Sequence[str]) -> Simulation:
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


def _report(
    console: Console, found: Comparison, paths: Sequence[Path], searched: SweepResult | None = None, *, json: bool
) -> None:
    if json:
        print_json(found.as_dict() | ({"sweep": searched.as_dict()} if searched else {}))
        return
    for grid in compare_tables.grids(found):
        console.print(grid.rich())
    console.print(compare_tables.ranking(found), soft_wrap=True)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def _write(comparison: Comparison, folder: Path, kinds: Sequence[str]) -> list[Path]:
    paths = [folder / f"comparison.{kind}" for kind in ("json", "md")]
    write_bytes(paths[0], (jsonlib.dumps(comparison.as_dict(), indent=2) + "\n").encode())
    write_bytes(paths[1], compare_tables.markdown(comparison).encode())
    return [*paths, *_draw(comparison, folder, kinds)]


def _draw(comparison: Comparison, folder: Path, kinds: Sequence[str]) -> list[Path]:
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
