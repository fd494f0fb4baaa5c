"""`diastole pack`: any data set as one archive."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import Json, consoles, data_overrides, print_json
from diastole.experiments.errors import ExperimentError


def pack(
    data: Annotated[Path, typer.Argument(help="A folder of images, a table, or another data set.")],
    out: Annotated[
        Path, typer.Option(help="What is written: an archive (.npz), or a folder for what memory may not hold.")
    ],
    change: Annotated[list[str] | None, typer.Option("--set", help="How it is read: data.size=32.")] = None,
    json: Json = False,
) -> None:
    """Write a data set to one archive or folder, with its test part and natural clients, which `--data` takes.

    Example: `diastole pack pets/ --set data.size=32 --out pets.npz`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.experiments import toml
    from diastole.experiments.data.pack import pack as write
    from diastole.experiments.data.sets import load
    from diastole.experiments.experiment import Experiment

    if out.suffix == ".npz" and out.is_dir():
        raise ExperimentError(
            f"--out {out}: is a folder; the name of an archive is accepted, or of a folder without .npz"
        )
    settings = Experiment.parse(toml.overridden({}, [*data_overrides(data), *(change or [])]), "pack")
    read = settings.data
    dataset = write(lambda spool: load(read.name, read.path, settings.reading(spool=spool)), out)
    files = [out] if out.is_file() else list(out.iterdir())
    told = {
        "path": str(out),
        "bytes": sum(file.stat().st_size for file in files),
        "kind": settings.data.name,
        "input_shape": list(dataset.input_shape),
        "classes": dataset.classes,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "users": 0 if dataset.users is None else len(dataset.users.unique()),  # type: ignore[no-untyped-call]
    }
    if json:
        print_json(told)
        return
    counts = f"{told['train']:,} examples and {told['test']:,} for the test, {told['classes']} classes"
    users = f", {told['users']:,} users" if told["users"] else ""
    line = f"{out}: {counts}{users}; an example is {told['input_shape']}"
    consoles(json).print(line, soft_wrap=True)
