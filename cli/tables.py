"""The tables at the end of a run."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diastole.cli.console import figure
from diastole.cli.options import print_json
from diastole.cli.sizes import megabytes, thousands
from diastole.experiments.personal import spread
from diastole.experiments.report.metric import heading
from diastole.experiments.report.rows import DeviceRow, TierRow
from diastole.experiments.result import Result
from diastole.models.methods.registry import METHODS
from diastole.models.metrics import LOSS, title

MANY_DEVICES = 40


def finish(console: Console, result: Result, written: Sequence[Path], *, json: bool) -> None:
    """Print a result whose files are written: as JSON on standard output, or as tables for people."""
    if json:
        print_json(result.as_dict())
        return
    show(console, result)
    if written:
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)


def show(console: Console, result: Result) -> None:
    """Print what each tier is and came to, what each device spent, and the global model."""
    console.print()
    console.print(_tiers(result))
    if len(result.accounts) <= MANY_DEVICES:
        console.print(_devices(result))
    console.print(_scores(result))
    if result.personal:
        console.print(_personal(result))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _tiers(result: Result) -> Table:
    table = _table(
        "Tiers (per device)",
        *("tier", "devices", "sub-model", "parameters", "MACs/example", "peak memory"),
        *("down/round", "up/round", "s/round"),
        *map(title, result.metrics),
        *_field_columns(result),
    )
    for row in result.tiers:
        table.add_row(
            row.tier,
            str(row.devices),
            row.spec or ("nothing fits" if row.devices else "-"),
            f"{row.parameters:,}",
            thousands(row.training_macs),
            megabytes(row.memory),
            megabytes(row.bytes_down),
            megabytes(row.bytes_up),
            f"{row.seconds:.2f}",
            *(figure(name, row.scores.get(name)) for name in result.metrics),
            *_field_cells(row),
        )
    return table


def _devices(result: Result) -> Table:
    table = _table(
        "What each device spent (whole run)",
        *("device", "tier", "sub-model", "examples", "updates", "refused", "down", "up", "MACs", "seconds"),
        *_field_columns(result),
    )
    for row in result.devices:
        table.add_row(
            row.device,
            row.tier,
            row.spec or "-",
            str(row.examples),
            str(row.updates),
            str(row.quarantined),
            megabytes(row.bytes_down),
            megabytes(row.bytes_up),
            thousands(row.macs),
            f"{row.seconds:.2f}",
            *_field_cells(row),
        )
    return table


def _field_columns(result: Result) -> tuple[str, ...]:
    return ("field time (s)", "energy (J)") if result.field else ()


def _field_cells(row: TierRow | DeviceRow) -> tuple[str, ...]:
    if row.field_seconds is None or row.joules is None:
        return ()
    return f"{row.field_seconds:.3g}", f"{row.joules:.3g}"


def _personal(result: Result) -> Table:
    metric = result.metric
    title = f"Each device on the examples it keeps: {heading(metric)}, {len(result.personal)} devices"
    table = _table(title, "its sub-model", "mean", "5th percentile", "median", "95th percentile")
    for when, found in spread(result.personal, metric).items():
        values = (found.mean, found.low, found.median, found.high)
        table.add_row(f"{when} its own training", *(figure(metric, value) for value in values))
    return table


def _scores(result: Result) -> Table:
    names = (*result.metrics, LOSS)
    table = _table("Global model on the test set", "trained by", *map(title, names))
    method = result.experiment.method
    by = METHODS[method].baseline or f"{method}: every device, each at its own size"
    table.add_row(by, *(figure(name, result.scores.get(name)) for name in names), style="bold")
    return table
