"""`diastole bench`: measure on this machine."""

from typing import Annotated

import typer
from rich.table import Table

from diastole.cli.options import Json, consoles, print_json


def bench(
    group: Annotated[str | None, typer.Argument(help="One group; all of them by default.")] = None,
    scale: Annotated[
        float,
        typer.Option(min=0.001, max=1.0, help="Devices in groups devices and memory; 1 is for their bars."),
    ] = 0.1,
    json: Json = False,
) -> None:
    """Measure, each time against a baseline in the same run.

    Example: `diastole bench fold --json`
    """
    from diastole.benchmarks.groups import run

    console = consoles(json)
    rows = run(group, lambda text: console.print(text, style="dim"), scale)
    if json:
        print_json([row.as_dict() for row in rows])
        return
    table = Table()
    for column in ("benchmark", "value", "unit", "baseline", "ratio", "better"):
        table.add_column(column, justify="left" if column in ("benchmark", "unit", "better") else "right")
    for row in rows:
        table.add_row(row.name, f"{row.value:.4g}", row.unit, f"{row.baseline:.4g}", f"{row.ratio:.3g}", row.better)
    console.print(table)
