"""`diastole simulate`: run an experiment in this process."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli import tables
from diastole.cli.console import Watch
from diastole.cli.options import DataPath, Json, Track, consoles, data_overrides, make_folder, note_pictures
from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.report.trackers import track as track_run
from diastole.simulations import simulate as engine
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation


def simulate(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    track: Track = None,
    fresh: Annotated[bool, typer.Option(help="Start anew even if an unfinished run could go on.")] = False,
    json: Json = False,
) -> None:
    """Run an experiment with simulated devices and write its report.

    A run that was stopped or killed goes on behind its last round when the same command is given again.

    Example: `diastole simulate simulations/examples/mnist.toml --data mnist.npz --set method=width`
    """
    settings = Simulation.load(experiment, data_overrides(data) + (change or []))
    console = consoles(json)
    federation = make_federation(settings)
    tiers = {name: profile.tier for name, profile in federation.profiles.items()}
    checkpoint = Checkpoint(make_folder("--out", out) / "run.checkpoint", settings, federation.run.dataset.digest)
    if fresh:
        checkpoint.remove()
    found = checkpoint.check()
    closed = found.closed if found else ()
    note_pictures(console)
    with track_run(track or [], settings, out, closed) as trackers, Watch(console, tiers) as watch:
        result = engine.simulate(federation, (watch, *trackers), checkpoint)
    tables.finish(console, result, result.save(out), json=json)
    checkpoint.remove()
