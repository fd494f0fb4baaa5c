"""`diastole simulate`: run an experiment in this process."""

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
    consoles,
    data_overrides,
    make_folder,
    note_pictures,
)
from diastole.server.errors import RoundError

RUN = "simulation"


def simulate(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    track: Track = None,
    figures: Figures = "png",
    fresh: Annotated[bool, typer.Option(help="Start anew even if an unfinished run could go on.")] = False,
    dashboard: Dashboard = False,
    web: Web = "",
    json: Json = False,
) -> None:
    """Run an experiment with simulated devices and write its report.

    A run that was stopped or killed goes on behind its last round when the same command is given again. So does a
    finished one that is given more rounds.

    Example: `diastole simulate simulations/examples/mnist.toml --data mnist.npz --set method=width`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.cli import tables
    from diastole.cli.console import Watch
    from diastole.cli.dashboard import dashboard as show
    from diastole.experiments.report.figures import kinds_of
    from diastole.simulations.devices import make_federation
    from diastole.simulations.simulate import simulate_in
    from diastole.simulations.simulation import Simulation

    beside(experiment)
    settings = Simulation.load(experiment, data_overrides(data) + (change or []))
    console, kinds = consoles(json), kinds_of(figures)
    federation = make_federation(settings)
    tiers = {name: profile.tier for name, profile in federation.profiles.items()}
    note_pictures(console)
    with show(console, dashboard, web) as board:
        observers = (board.watch(RUN, federation),) if board else ()
        with Watch(console, tiers) as watch:
            result, paths = simulate_in(
                make_folder("--out", out),
                federation,
                (watch, *observers),
                track or (),
                fresh=fresh,
                figures=kinds,
                begun=lambda coordinator: board.begun(RUN, coordinator) if board else None,
            )
        tables.finish(console, result, paths, json=json)
    if result.failed:
        raise RoundError(result.failed)
