"""`diastole simulate`: run an experiment in this process."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli import tables
from diastole.cli.console import Watch
from diastole.cli.options import Json, consoles, data_overrides, print_json
from diastole.simulations import simulate as engine
from diastole.simulations.experiment import load
from diastole.simulations.federation import make_federation
from diastole.simulations.report import Report


def simulate(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    data: Annotated[Path | None, typer.Option(help="Data set instead of the file's: an .npz or a folder.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    json: Json = False,
) -> None:
    """Run an experiment with simulated devices and write its report.

    Example: `diastole simulate simulations/examples/mnist.toml --data mnist.npz --set method=width`
    """
    settings = load(experiment, data_overrides(data) + (change or []))
    console = consoles(json)
    federation = make_federation(settings)
    with Watch(console, {name: device.profile.tier for name, device in federation.devices.items()}) as watch:
        outcome = engine.simulate(federation, (watch,))
    report = Report(federation, outcome, {})
    paths = report.write(out)
    if json:
        print_json(report.as_dict())
        return
    tables.show(console, report)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)
