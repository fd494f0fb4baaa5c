"""`diastole methods`: what there is, and what it costs."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.grid import DASH, Grid
from diastole.cli.options import DataPath, Json, consoles, data_overrides, print_json
from diastole.cli.sizes import megabytes, thousands
from diastole.experiments.errors import ExperimentError
from diastole.proto.files import write_bytes

if TYPE_CHECKING:
    from diastole.simulations.methods import Fit, Line

TITLE = "Each tier's largest size: MACs of training on one example, bytes of a payload, peak memory"
WIDE, INDENT = 120, " " * 4
"""Columns from which on a terminal shows the methods as one table."""
NOTHING = ("nothing fits", DASH, DASH, DASH)
BEGIN, END = "<!-- made by `make docs`: diastole methods -->", "<!-- the end of what `make docs` makes -->"


def methods(
    experiment: Annotated[Path | None, typer.Argument(help="An experiment, for its model and tiers.")] = None,
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    update: Annotated[Path | None, typer.Option(help="Write the Markdown between the marks in this file.")] = None,
    json: Json = False,
) -> None:
    """List every method: its source, what a sub-model is, and the cost of its largest size for each tier.

    Without an experiment, the demo's model and tiers are taken.

    Example: `diastole methods simulations/examples/cifar10.toml --markdown`
    """
    # Here, because they import torch, which takes seconds: the help and a wrong option do without.
    from diastole.simulations.compared import NEUTRAL
    from diastole.simulations.demo import demo_experiment
    from diastole.simulations.methods import method_lines
    from diastole.simulations.simulation import Simulation

    if experiment is None and (data or change):
        raise ExperimentError("--data and --set change an experiment; give its path too")
    # The file's own method is not run, so a mistake in it must not matter.
    neutral = [f'method="{NEUTRAL}"', "proxy.epochs=0"]
    changes = data_overrides(data) + (change or []) + neutral
    rows = list(method_lines(Simulation.load(experiment, changes) if experiment else demo_experiment(0)))
    if json:
        print_json([asdict(row) for row in rows])
    elif update is not None:
        write_bytes(update, replaced(update, text(rows)).encode())
    elif markdown:
        sys.stdout.write(text(rows))
    else:
        console = consoles(json)
        console.print(grid(rows).rich() if console.width >= WIDE else blocks(rows, console.width))
        for row in rows:
            if row.note:
                console.print(f"{row.method}: {row.note}", soft_wrap=True)
            if row.recipe and console.width >= WIDE:
                console.print(f"{row.method}: its paper's recipe is {_recipe(row)}", soft_wrap=True)


def grid(rows: "Sequence[Line]") -> Grid:
    """Return the methods as a table."""
    tiers = list(dict.fromkeys(tier for row in rows for tier in row.sizes))
    return Grid(
        TITLE,
        ["method", "source", "a sub-model is", "needs", *tiers],
        [
            [row.method, row.source, row.idea, row.needs or DASH, *(_cell(row, row.sizes.get(tier)) for tier in tiers)]
            for row in rows
        ],
        words=4,
    )


def blocks(rows: "Sequence[Line]", width: int) -> str:
    """Return the methods one below the other, for a terminal of so many columns."""
    lines = wrap(f"{TITLE}.", width)
    for row in rows:
        lines += ["", f"{row.method}: {row.source}"]
        said = row.idea + (f"; needs {row.needs}" if row.needs else "")
        lines += wrap(said, width, initial_indent=INDENT, subsequent_indent=INDENT)
        if recipe := _recipe(row):
            lines += wrap(f"recipe: {recipe}", width, initial_indent=INDENT, subsequent_indent=INDENT)
        sizes = [
            (tier, *(_costs(row, size) if size else ("nothing fits", *[DASH] * 3))) for tier, size in row.sizes.items()
        ]
        widest = [max(map(len, column)) for column in zip(*sizes, strict=True)]
        for tier, label, *costs in sizes:
            found = (each.rjust(most) for each, most in zip(costs, widest[2:], strict=True))
            lines.append(f"{INDENT}{tier.ljust(widest[0])}  {label.ljust(widest[1])}  {'  '.join(found)}")
    return "\n".join(lines)


def text(rows: "Sequence[Line]") -> str:
    """Return the methods as Markdown."""
    notes = "".join(f"* `{row.method}` is not for this model: {row.note}\n" for row in rows if row.note)
    notes += "".join(f"* The recipe of `{row.method}`: {_recipe(row, '`')}\n" for row in rows if row.recipe)
    return grid(rows).markdown() + (f"\n{notes}" if notes else "")


def replaced(path: Path, table: str) -> str:
    """Return a file's text with `table` between its marks. Raises `ExperimentError` if it has none."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ExperimentError(f"{path}: has no lines {BEGIN!r} and {END!r} for the table to stand between")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def _recipe(row: "Line", quote: str = "") -> str:
    return ", ".join(f"{quote}{key} = {value}{quote}" for key, value in row.recipe.items())


def _cell(row: "Line", size: "Fit | None") -> str:
    if size is None:
        return DASH
    label, *costs = _costs(row, size)
    return f"{label}: {', '.join(costs)}"


def _costs(row: "Line", size: "Fit") -> tuple[str, str, str, str]:
    label = size.label.removeprefix(f"{row.method} ")
    return label, thousands(size.training_macs), megabytes(size.bytes), megabytes(size.memory)
