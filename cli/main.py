"""The `diastole` command: one file a sub-command, one line an error."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import click
import typer
from typer.core import TyperArgument, TyperGroup

from diastole.client import environment
from diastole.proto.errors import DiastoleError

COMMANDS = {
    "demo": "Run a coordinator and eight agent processes of three sizes on handwritten digits, over gRPC.",
    "simulate": "Run an experiment with simulated devices and write its report.",
    "compare": "Run methods on the same data, devices, partition, rounds, budgets and proxy set, and compare them.",
    "tune": "Find each method's own values of some keys, on examples held out of the training set.",
    "methods": "List every method: its source, what a sub-model is, and the cost of its largest size for each tier.",
    "serve": "Coordinate real agents: wait for the experiment's devices, run its rounds, write its report.",
    "join": "Join a coordinator and train whatever it sends, until the run is over.",
    "infer": "Answer with a trained model: for the examples of a file, or for other programs until it is told to stop.",
    "export": "Write a trained model to a file that runs elsewhere, and a card that says what it is.",
    "shards": "Write each device's private examples to a file of its own, for agents on several machines.",
    "pack": "Write a data set to one archive or folder, with its test part and natural clients, which `--data` takes.",
    "new": "Write a small project to start from: an experiment, a network, data, and what to do with them.",
    "config": "Look at an experiment without running it.",
    "fleet": "Run agents on this host within real limits, as containers or processes; kill, pause and throttle some.",
    "bench": "Measure, each time against a baseline in the same run.",
    "doctor": "Find what is wrong with a deployment, why, and what to do; the exit code is 6 if something is.",
    "support-bundle": "Gather what somebody needs who is to help: versions, findings, logs and runs, without secrets.",
    "admin": "Look at a running coordinator and steer it.",
}
"""The first line of each sub-command's help: to list them, none is imported."""


PACKAGES = {"admin": "admin.app", "doctor": "doctor.app", "support-bundle": "support"}
"""Sub-commands whose modules have another name."""


class Argument(TyperArgument):
    """An argument with its help, which typer before 0.21 loses to click from 8.5 on, whose own arguments have one."""

    def __init__(self, *, help: str | None = None, **settings: Any) -> None:  # noqa: A002 (typer's name)
        super().__init__(help=help, **settings)
        self.help = help


typer.main.TyperArgument = Argument  # type: ignore[attr-defined]


class Commands(TyperGroup):
    """Sub-commands that are imported when they are run: most need torch, which takes seconds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update({name: click.Command(name, help=line) for name, line in COMMANDS.items()})

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the sub-command's name, the sub-command, imported, and its arguments."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and load(str(found.name)), rest


def load(name: str) -> click.Command:
    """Import a sub-command and return it."""
    module = import_module(f"diastole.cli.{PACKAGES.get(name, name)}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(rich_markup_mode="markdown", add_completion=False)
        app.command(name)(getattr(module, name))
    command: click.Command = typer.main.get_command(app)
    command.name = name
    return command


app = typer.Typer(
    cls=Commands,
    name="diastole",
    help="Federated and edge training for devices of every size.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click has come to do it itself
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"diastole {version('diastole')}")
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error that the user can mend is one line and a documented exit code."""
    # Flower reports usage to its makers unless told not to.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    environment.prepare()
    try:
        app(prog_name="diastole")
    except DiastoleError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
