"""The tables at the end of a run."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from diastole.cli.console import megabytes, percent, thousands
from diastole.cli.options import print_json
from diastole.experiments.report.picture import TITLES
from diastole.experiments.report.report import DeviceRow, Report, TierRow


def finish(console: Console, report: Report, folder: Path, *, json: bool) -> None:
    """Write the report into `folder` and print it: as JSON on standard output, or as tables for people."""
    paths = report.write(folder)
    if json:
        print_json(report.as_dict())
        return
    show(console, report)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def show(console: Console, report: Report) -> None:
    """Print what each tier is and came to, what each device spent, and the global model beside the baselines."""
    console.print()
    console.print(_tiers(report))
    if len(report.federation.devices) <= 40:
        console.print(_devices(report))
    console.print(_accuracies(report))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _tiers(report: Report) -> Table:
    table = _table(
        "Tiers (per device)",
        *("tier", "devices", "sub-model", "parameters", "MACs/example", "peak memory"),
        *("down/round", "up/round", "s/round", "accuracy"),
        *_field_columns(report),
    )
    for row in report.tiers():
        table.add_row(
            row.tier,
            str(row.devices),
            row.spec or "nothing fits",
            f"{row.parameters:,}",
            thousands(row.training_macs),
            megabytes(row.memory),
            megabytes(row.bytes_down),
            megabytes(row.bytes_up),
            f"{row.seconds:.2f}",
            percent(row.accuracy),
            *_field_cells(row),
        )
    return table


def _devices(report: Report) -> Table:
    table = _table(
        "What each device spent (whole run)",
        *("device", "tier", "sub-model", "examples", "updates", "refused", "down", "up", "MACs", "seconds"),
        *_field_columns(report),
    )
    for row in report.devices():
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


def _field_columns(report: Report) -> tuple[str, ...]:
    return ("field time (s)", "energy (J)") if report.outcome.field else ()


def _field_cells(row: TierRow | DeviceRow) -> tuple[str, ...]:
    if row.field_seconds is None or row.joules is None:
        return ()
    return f"{row.field_seconds:.3g}", f"{row.joules:.3g}"


def _accuracies(report: Report) -> Table:
    table = _table("Global model on the test set", "trained by", "accuracy")
    for method, accuracy in report.accuracies().items():
        own = method == report.federation.experiment.method
        title = TITLES.get(method, f"{method}: every device, each at its own size")
        table.add_row(title, percent(accuracy), style="bold" if own else None)
    return table
