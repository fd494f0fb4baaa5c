"""`diastole shards`: deal an experiment's data out to files, one a device."""

import re
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import DataPath, Json, beside, check_folder, consoles, data_overrides, print_json
from diastole.cli.sizes import megabytes
from diastole.experiments.errors import ExperimentError

SHARD = re.compile(r"device-[0-9]+\.npz")


def shards(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    json: Json = False,
) -> None:
    """Write each device's private examples to a file of its own, for agents on several machines.

    Shards that an earlier call has left in the folder are removed; a folder with anything else in it is refused.

    Example: `diastole shards simulations/examples/digits.toml --out shards`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.simulations.agents import write_shards
    from diastole.simulations.devices import make_federation
    from diastole.simulations.simulation import Simulation

    beside(experiment)
    federation = make_federation(Simulation.load(experiment, data_overrides(data) + (change or [])))
    check_folder("--out", out)
    for shard in _earlier_shards(out):
        shard.unlink()
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
        console.print(line, soft_wrap=True)


def _earlier_shards(folder: Path) -> list[Path]:
    """Return the shards in a folder. Raises `ExperimentError` if it holds anything that `write_shards` does not."""
    found = list[Path]()
    for tier in sorted(folder.iterdir()) if folder.exists() else ():
        for path in sorted(tier.iterdir()) if tier.is_dir() and not tier.is_symlink() else (tier,):
            if path.is_dir() or path.parent == folder or not SHARD.fullmatch(path.name):
                raise ExperimentError(f"--out {folder}: holds {path}, which is no shard; an empty folder is accepted")
            found.append(path)
    return found
