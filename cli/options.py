"""Options that several commands share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.experiments.errors import ExperimentError

if TYPE_CHECKING:
    from rich.console import Console

DataPath = Annotated[Path | None, typer.Option(help="Data set instead of the file's: a file or a folder.")]
Track = Annotated[list[str] | None, typer.Option(help="Also write curves: csv, jsonl, tensorboard, mlflow or wandb.")]
Figures = Annotated[str, typer.Option(help="Kinds of pictures, separated by commas: png, pdf, svg.")]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Show the runs on a page for browsers of this machine.")]
Web = Annotated[str, typer.Option(help="Where that page is, host:port of this machine; by default 127.0.0.1:7780.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]


def consoles(json: bool) -> "Console":
    """Return where people read: standard output, or standard error when programs read the former."""
    # Here, because the agent does without.
    from rich.console import Console

    # What is printed has users' texts in it, paths and names of tiers and devices; brackets in them are no markup.
    console = Console(stderr=json, markup=False, emoji=False, highlight=False)
    # A pipe has no width; tables must not be folded at 80 columns there.
    if not console.is_terminal:
        console.width = 140
    return console


def warn(text: str) -> None:
    """Print one line that begins with "warning:" where people read it, whatever programs read."""
    typer.echo(f"warning: {text}", err=True)


def print_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def beside(experiment: Path) -> None:
    """Let an experiment name code that lies beside its file, as a script may import what lies beside it."""
    folder = str(experiment.parent.resolve())
    if folder not in sys.path:
        # Last: it hides nothing that is installed.
        sys.path.append(folder)


def data_overrides(path: Path | None) -> list[str]:
    """Return the overrides that `--data PATH` stands for."""
    # Imports torch, which the admin commands do without.
    from diastole.experiments.data.sets import kind_of

    if path is None:
        return []
    if not path.exists():
        raise ExperimentError(f"--data {path}: no such file or folder")
    return [f'data.name="{kind_of(path)}"', f"data.path={path.resolve()!s}"]


def note_pictures(console: "Console") -> None:
    """Say before a run that its report will have no pictures, if matplotlib is not installed."""
    from diastole.experiments.report.figures import NO_PICTURES, can_draw

    if not can_draw():
        console.print(f"the report will have no pictures: {NO_PICTURES}", soft_wrap=True)


def check_folder(option: str, path: Path) -> None:
    """Raise `ExperimentError` if an option that names a folder names a file."""
    if path.exists() and not path.is_dir():
        raise ExperimentError(f"{option} {path}: is a file; a folder is accepted")


def make_folder(option: str, path: Path) -> Path:
    """Make the folder that an option names, before the work whose results it is for, and return it."""
    check_folder(option, path)
    path.mkdir(parents=True, exist_ok=True)
    return path
