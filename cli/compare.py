"""`diastole compare`: methods side by side."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import (
    Dashboard,
    DataPath,
    Figures,
    Json,
    Track,
    Web,
    beside,
    check_folder,
    consoles,
    data_overrides,
    note_pictures,
)


def compare(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file; its method does not matter.")],
    methods: Annotated[str, typer.Option(help="Methods and baselines, separated by commas.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, counted up from the experiment's own.")] = 3,
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Try values of a key, table.key=value,value, and compare at the best.")
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="Compare at the values that diastole tune has found: its folder, or tuned.json.")
    ] = None,
    equal: Annotated[
        str, typer.Option(help="Also compare at as much spending as an anchor's: bytes, macs, or both with a comma.")
    ] = "",
    anchor: Annotated[str, typer.Option(help="That method; by default the costliest that serves every device.")] = "",
    most_rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds that a method may have for that; by default five times the file's."),
    ] = None,
    against: Annotated[str, typer.Option(help="Give differences from this method, not the best of the others.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the runs and the results.")] = Path("comparison"),
    target: Annotated[float | None, typer.Option(help="Also report the time to this score.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at the same time, each in a process of its own.")] = 1,
    track: Track = None,
    figures: Figures = "png",
    show: Annotated[str, typer.Option(help="Draw only these methods, of runs that are there; nothing is run.")] = "",
    fresh: Annotated[bool, typer.Option(help="Delete what an earlier call has left of these runs.")] = False,
    dashboard: Dashboard = False,
    web: Web = "",
    json: Json = False,
) -> None:
    """Run methods on the same data, devices, partition, rounds, budgets and proxy set, and compare them.

    Given again after it was stopped or killed, it goes on; finished runs are not run again, and go on if they are given
    more rounds. With --grid, or [sweep] in the file, values are tried first, on examples that are not the test's; with
    --tuned each method has the values that `diastole tune` has found for it.

    Example: `diastole compare simulations/examples/digits.toml --methods width,conv,fedavg --seeds 3`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import sweep_tables
    from diastole.cli.comparing import View, draw, playing, report, settings_of, with_equal, write
    from diastole.cli.dashboard import dashboard as show_page
    from diastole.experiments.errors import ExperimentError
    from diastole.experiments.report.figures import kinds_of
    from diastole.experiments.sweep.result import read_values
    from diastole.experiments.sweep.tuned import Tuned
    from diastole.simulations import equal as equally
    from diastole.simulations.compare import compare as play_all
    from diastole.simulations.compare import kept, kept_runs
    from diastole.simulations.compared import Files, Standing, known, planned_runs
    from diastole.simulations.sweep import planned_count, sweep, writer
    from diastole.simulations.tuned import values_of

    given = [name.strip() for name in (show or methods).split(",") if name.strip()]
    beside(experiment)
    if tuned and grid:
        raise ExperimentError("--tuned and --grid: values come from one of them")
    settings = settings_of(experiment, [*data_overrides(data), *(change or [])], given, grid or [])
    sweeps = tuned is None and settings.sweep is not None and bool(settings.sweep.parameters)
    before = tuned and Tuned.read(tuned)
    planned = settings.sweep.methods if settings.sweep else ()
    names = known(given or planned or (list(before.methods) if before else ()))
    numbers = range(settings.seed, settings.seed + seeds)
    console, kinds, files = consoles(json), kinds_of(figures), Files(out)
    check_folder("--out", out)
    values, sources = values_of(before, tuned, settings, names, files) if before and tuned else ({}, {})
    todo, runs = planned_runs(settings, names, numbers, values), planned_count(settings, names) if sweeps else 0
    end = partial(
        with_equal,
        settings,
        files,
        kinds=equally.kinds_of(equal),
        anchor=equally.among("--anchor", anchor, names),
        most=most_rounds,
        against=equally.among("--against", against, names),
        sources=sources,
        fresh=fresh and not show,
    )
    note_pictures(console)
    if show:
        values = read_values(out, names) if sweeps else values
        found = kept(settings, names, numbers, out, target=target, values=values)
        found = end(found, values, partial(kept_runs, files=files))
        report(console, found, draw(found, out, kinds), json=json)
        return
    searched, paths = None, list[Path]()
    try:
        if sweeps:
            # Before the trials, which take long.
            writer()
            with View(console, runs, runs * settings.rounds.count) as view:
                searched = sweep(settings, names, out / "sweep", view, jobs=jobs, track=track or (), fresh=fresh)
            paths = sweep_tables.write(searched, settings, out, kinds)
            console.print(sweep_tables.best(searched).rich())
            values = searched.values
        with (
            show_page(console, dashboard, web) as board,
            View(console, len(todo), len(todo) * settings.rounds.count) as view,
        ):
            if board is not None and not sweeps:
                for run in todo:
                    board.expect(run.name, run.name, run.method, run.home.rounds.count)

            def tell(standing: Standing) -> None:
                view(standing)
                if board is not None:
                    board.tell(standing)

            found = play_all(
                settings,
                names,
                numbers,
                out,
                tell,
                jobs=jobs,
                target=target,
                track=track or (),
                fresh=fresh,
                values=values,
                screen=board,
            )
        found = end(found, values, playing(console, files, jobs, track or ()))
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None
    report(console, found, [*paths, *write(found, out, kinds)], searched, json=json)
