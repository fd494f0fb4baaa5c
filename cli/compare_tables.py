"""A comparison's tables, for a terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from diastole.experiments.comparison.comparison import Comparison, Spread

DASH = "-"


@dataclass(frozen=True, slots=True)
class Unit:
    """How figures of a kind are written: units from the largest to the smallest with their sizes, and decimals.

    Without `decimals` there are as many as three digits of a mean take, at most two.
    """

    sizes: Sequence[tuple[str, float]]
    decimals: int | None = None

    def write(self, mean: float, deviation: float | None = None) -> str:
        """Return a mean, and a deviation if there is one, in the unit that suits the mean."""
        unit, size = next((pair for pair in self.sizes if mean >= pair[1]), self.sizes[-1])
        value, decimals = mean / size, self.decimals
        if decimals is None:
            decimals = 0 if value >= 100 or (value == round(value) and not deviation) else 1 if value >= 10 else 2
        spread = f" ± {deviation / size:.{decimals}f}" if deviation else ""
        return f"{value:.{decimals}f}{spread}{unit}"


BYTES = Unit(((" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1.0)))
COUNT = Unit(((" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3), ("", 1.0)))
SECONDS = Unit(((" days", 86_400.0), (" h", 3600.0), (" min", 60.0), (" s", 1.0)))
SHARE = Unit((("%", 0.01),), 1)
NUMBER = Unit((("", 1.0),))


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text: a title, and rows as long as the header, whose first `words` columns are not numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def rich(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.header):
            table.add_column(column, justify="right" if number >= self.words else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under its title."""
        rule = ["---" if number < self.words else "---:" for number in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def grids(comparison: Comparison) -> list[Grid]:
    """Return the tables of accuracy and of costs, each figure as mean ± standard deviation over the seeds."""
    seeds, tiers = len(comparison.seeds), comparison.tiers
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else f"seed {comparison.seeds[0]}"
    accuracy: dict[str, tuple[str, Unit]] = {"accuracy": ("global", SHARE)}
    accuracy |= {f"accuracy/{tier}": (tier, SHARE) for tier in tiers}
    accuracy["mean_tier_accuracy"] = ("mean of tiers", SHARE)
    accuracy["worst_tier_accuracy"] = ("worst tier", SHARE)
    accuracy["served_devices"] = ("devices served", NUMBER)
    device: dict[str, tuple[str, Unit]] = {"bytes_per_device": ("bytes", BYTES)}
    device["macs_per_device"] = ("MACs", COUNT)
    device |= {f"memory/{tier}": (f"peak memory, {tier}", BYTES) for tier in tiers}
    whole: dict[str, tuple[str, Unit]] = {"bytes": ("bytes", BYTES), "macs": ("MACs", COUNT)}
    whole |= {"wall_seconds": ("time here", SECONDS), "server_seconds": ("the server's part", SECONDS)}
    if comparison.virtual:
        whole["virtual_seconds"] = ("virtual time", SECONDS)
    if comparison.target is not None:
        whole["rounds_to_target"] = (f"rounds to {comparison.target:.0%}", NUMBER)
        whole["seconds_to_target"] = (f"time to {comparison.target:.0%}", SECONDS)
    return [
        _grid(f"Accuracy on the test set, {over}", comparison, accuracy),
        _grid(f"What a device spends in the whole run, {over}", comparison, device),
        _grid(f"The whole run, {over}", comparison, whole),
    ]


def markdown(comparison: Comparison) -> str:
    """Return every table as Markdown, under a line that says of what."""
    experiment = comparison.experiment
    tiers = {name: tier for name, tier in experiment["tiers"].items() if tier["devices"]}
    devices = ", ".join(f"{tier['devices']} {name} ({tier['width']:g})" for name, tier in tiers.items())
    if comparison.virtual:
        widths = ", ".join(f"{tier['width']:g}" for tier in tiers.values())
        devices = f"{sum(tier['devices'] for tier in tiers.values())} of {comparison.population}; widths {widths}"
    seeds = ", ".join(map(str, comparison.seeds))
    head = (
        f"`{experiment['name']}`: {experiment['rounds']['count']} rounds, {experiment['partition']['kind']} partition, "
        f"devices: {devices}; seeds {seeds}.\n"
    )
    return "\n".join([head, *(grid.markdown() for grid in grids(comparison))])


def _grid(title: str, comparison: Comparison, columns: Mapping[str, tuple[str, Unit]]) -> Grid:
    rows = [
        [method, *(_cell(row.get(name), unit, len(comparison.seeds)) for name, (_, unit) in columns.items())]
        for method, row in comparison.summary().items()
    ]
    return Grid(title, ["method", *(head for head, _ in columns.values())], rows)


def _cell(spread: Spread | None, unit: Unit, seeds: int) -> str:
    """Return a figure; how many seeds have it, if not all; a dash if none has."""
    if spread is None or spread.mean is None:
        return DASH
    some = f" ({spread.count} of {seeds})" if spread.count < seeds else ""
    return unit.write(spread.mean, spread.deviation) + some
