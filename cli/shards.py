"""`diastole shards`: deal an experiment's data out to files, one a device."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.console import megabytes
from diastole.cli.options import Json, consoles, data_overrides, print_json
from diastole.simulations.agents import write_shards
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation


def shards(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    data: Annotated[Path | None, typer.Option(help="Data set instead of the file's: an .npz or a folder.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    json: Json = False,
) -> None:
    """Write each device's private examples to a file of its own, for agents on several machines.

    Example: `diastole shards simulations/examples/digits.toml --out shards`
    """
    federation = make_federation(Simulation.load(experiment, data_overrides(data) + (change or [])))
    paths = write_shards(federation, out)
    rows = [
        {
            "device": name,
            "tier": federation.devices[name].profile.tier,
            "memory": federation.devices[name].profile.memory,
            "examples": len(federation.devices[name].examples),
            "path": str(path),
        }
        for name, path in paths.items()
    ]
    if json:
        print_json(rows)
        return
    console = consoles(json)
    for row in rows:
        memory = row["memory"]
        limit = "" if memory is None else f"  --memory {memory} ({megabytes(float(str(memory)))})"
        line = f"{row['path']}  {row['tier']}  {row['examples']} examples{limit}"
        console.print(line, highlight=False, soft_wrap=True)
