"""`diastole config`: an experiment, looked at without running it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from diastole.cli.options import DataPath, Json, beside, consoles, data_overrides, print_json
from diastole.cli.sizes import megabytes, thousands
from diastole.experiments.errors import ExperimentError

if TYPE_CHECKING:
    from diastole.simulations.checking import Planned

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


@app.callback()
def _group() -> None:
    """Look at an experiment without running it.

    Example: `diastole config check simulations/examples/digits.toml`
    """


@app.command()
def check(
    experiment: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    data: DataPath = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a key: table.key=value.")] = None,
    json: Json = False,
) -> None:
    """Say what is wrong with an experiment, key by key, or what would be run: network, data, and a size for each tier.

    Example: `diastole config check simulations/examples/digits.toml`
    """
    # Here, because it imports torch, which takes seconds: the help and a wrong option do without.
    from diastole.simulations.checking import check as found_in

    beside(experiment)
    faults, planned = found_in(experiment, data_overrides(data) + (change or []))
    if json:
        print_json({"faults": faults, "run": asdict(planned) if planned else None})
    elif planned is not None:
        _show(experiment, planned)
    else:
        for fault in faults:
            consoles(json).print(fault, soft_wrap=True)
    if faults:
        raise ExperimentError(f"{experiment}: {len(faults)} {'faults' if len(faults) > 1 else 'fault'}")


def _show(experiment: Path, planned: "Planned") -> None:
    console = consoles(json=False)
    whole = f", up to {thousands(planned.parameters)} parameters" if planned.parameters else ""
    counts = f"{planned.training} examples to train on, {planned.test} to test on, {planned.proxy} of the server's own"
    for line in (
        f"{experiment}: nothing is wrong",
        f"method {planned.method}, network {planned.network}{whole}",
        f"{counts}; judged by {', '.join(planned.metrics)}",
        f"{planned.rounds} rounds of {planned.cohort} devices",
        f"tricks: {_tricks(planned)}",
    ):
        console.print(line, soft_wrap=True)
    table = Table()
    for number, column in enumerate(("tier", "devices", "largest size", "MACs", "payload", "memory")):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for tier, count in planned.devices.items():
        fit = planned.sizes.get(tier)
        costs = (thousands(fit.training_macs), megabytes(fit.bytes), megabytes(fit.memory)) if fit else ("-", "-", "-")
        table.add_row(tier, str(count), fit.label if fit else "none fits", *costs)
    console.print(table)
    if planned.unused:
        console.print(f"diastole serve does not use: {', '.join(planned.unused)}", soft_wrap=True)


def _tricks(planned: "Planned") -> str:
    """Return what a run trains with beside its method, and what of it is by the recipe."""
    marks = dict.fromkeys(planned.recipe, " (recipe)")
    return ", ".join(f"{key} = {value}{marks.get(key, '')}" for key, value in planned.tricks.items()) or "none"
