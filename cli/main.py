"""The `diastole` command: one file a sub-command, one line an error."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from diastole.cli import admin, bench, compare, demo, join, methods, pack, serve, shards, simulate
from diastole.proto.errors import DiastoleError

app = typer.Typer(
    name="diastole",
    help="Federated and edge training for devices of every size.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
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


app.command()(demo.demo)
app.command()(simulate.simulate)
app.command()(compare.compare)
app.command()(methods.methods)
app.command()(serve.serve)
app.command()(join.join)
app.command()(shards.shards)
app.command()(pack.pack)
app.command()(bench.bench)
app.add_typer(admin.app, name="admin")


def main() -> None:
    """Run the command line; an error that the user can mend is one line and a documented exit code."""
    # Flower reports usage to its makers unless told not to.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
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
