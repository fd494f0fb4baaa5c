"""`diastole pack`: any data set as one archive."""

from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import Json, consoles, data_overrides, print_json
from diastole.experiments import toml
from diastole.experiments.data.pack import pack as write
from diastole.experiments.data.sets import load
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment


def pack(
    data: Annotated[Path, typer.Argument(help="A folder of images, a table, or another data set.")],
    out: Annotated[Path, typer.Option(help="The archive that is written, .npz.")],
    change: Annotated[list[str] | None, typer.Option("--set", help="How it is read: data.size=32.")] = None,
    json: Json = False,
) -> None:
    """Write a data set to one archive, with its test part and natural clients; `--data` takes it from then on.

    Example: `diastole pack pets/ --set data.size=32 --out pets.npz`
    """
    if out.suffix != ".npz" or out.is_dir():
        raise ExperimentError(f"--out {out}: is no name of an archive; one that ends in .npz is accepted")
    settings = Experiment.parse(toml.overridden({}, [*data_overrides(data), *(change or [])]), "pack")
    dataset = load(settings.data.name, settings.data.path, settings.data.reading(settings.seed))
    write(dataset, out)
    told = {
        "path": str(out),
        "bytes": out.stat().st_size,
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
    consoles(json).print(line, highlight=False, markup=False, soft_wrap=True)
