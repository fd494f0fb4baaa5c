"""`diastole new`: a small project to start from."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.options import Json, consoles, print_json
from diastole.experiments.errors import ExperimentError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def new(
    name: Annotated[str, typer.Argument(help="The project's name; its folder is made here.")],
    json: Json = False,
) -> None:
    """Write a small project to start from: an experiment, a network, data, and what to do with them.

    Example: `diastole new my-sensors`
    """
    if not NAME.fullmatch(name):
        raise ExperimentError(
            f"{name!r}: a name begins with a letter; letters, digits, - and _ are accepted, 64 at most"
        )
    folder = Path(name)
    if folder.exists():
        raise ExperimentError(f"{folder}: is there already; another name is accepted")
    module = name.replace("-", "_").lower()
    template = files("diastole.cli").joinpath("assets")
    written = list[Path]()
    for source, target in {
        "experiment.toml": folder / "experiment.toml",
        "README.txt": folder / "README.md",
        "net.txt": folder / module / "net.py",
        "data.txt": folder / module / "data.py",
        "init.txt": folder / module / "__init__.py",
    }.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        text = template.joinpath(source).read_text(encoding="utf-8")
        target.write_text(text.replace("PROJECT", name).replace("MODULE", module), encoding="utf-8")
        written.append(target)
    if json:
        print_json([str(path) for path in written])
        return
    console = consoles(json)
    for path in written:
        console.print(str(path), soft_wrap=True)
    console.print(f"try it: cd {name} && diastole simulate experiment.toml", soft_wrap=True)
