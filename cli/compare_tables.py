"""A comparison's tables, for a terminal and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diastole.cli.grid import DASH, Grid
from diastole.experiments.comparison.comparison import Comparison, Spread
from diastole.experiments.report.metric import best, heading, is_share
from diastole.models.metrics import LOSS, shown, title

SERVED = "served_devices"


@dataclass(frozen=True, slots=True)
class Unit:
    """How figures of a kind are written: units from the largest to the smallest with their sizes, and decimals.

    Without `decimals` there are as many as the `significant` digits of a mean take, or else three, at most two.
    """

    sizes: Sequence[tuple[str, float]]
    decimals: int | None = None
    significant: int = 0

    def write(self, mean: float, deviation: float | None = None) -> str:
        """Return a mean, and a deviation if there is one, in the unit that suits the mean."""
        unit, size = next((pair for pair in self.sizes if mean >= pair[1]), self.sizes[-1])
        value, decimals = mean / size, self.decimals
        if self.significant:
            decimals = max(0, self.significant - 1 - (math.floor(math.log10(abs(value))) if value else 0))
        if decimals is None:
            decimals = 0 if value >= 100 or (value == round(value) and not deviation) else 1 if value >= 10 else 2
        spread = f" ± {deviation / size:.{decimals}f}" if deviation else ""
        return f"{value:.{decimals}f}{spread}{unit}"


BYTES = Unit(((" GB", 1e9), (" MB", 1e6), (" kB", 1e3), (" B", 1.0)))
COUNT = Unit(((" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3), ("", 1.0)))
SECONDS = Unit(((" days", 86_400.0), (" h", 3600.0), (" min", 60.0), (" s", 1.0)))
SHARE = Unit((("%", 0.01),), 1)
NUMBER = Unit((("", 1.0),))
SCORE = Unit((("", 1.0),), significant=4)


def grids(comparison: Comparison) -> list[Grid]:
    """Return the tables of scores and of costs, each figure as mean ± standard deviation over the seeds.

    The best of each score is marked, if there is more than one method.
    """
    seeds, tiers = len(comparison.seeds), comparison.tiers
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else f"seed {comparison.seeds[0]}"
    metric, *others = comparison.metrics
    unit = SHARE if is_share(metric) else SCORE
    scores: dict[str, tuple[str, Unit]] = {metric: ("global", unit)}
    scores |= {f"{metric}/{tier}": (tier, unit) for tier in tiers}
    scores[f"mean_tier_{metric}"] = ("mean of tiers", unit)
    scores[f"worst_tier_{metric}"] = ("worst tier", unit)
    scores[SERVED] = ("devices served", NUMBER)
    beside = {name: (title(name), SHARE if is_share(name) else SCORE) for name in (*others, LOSS)}
    if any(run.personal for runs in comparison.runs.values() for run in runs):
        beside |= {f"personal_{when}": (f"personal {title(metric)}, {when}", unit) for when in ("before", "after")}
    device: dict[str, tuple[str, Unit]] = {"bytes_per_device": ("bytes", BYTES)}
    device["macs_per_device"] = ("MACs", COUNT)
    device |= {f"memory/{tier}": (f"peak memory, {tier}", BYTES) for tier in tiers}
    whole: dict[str, tuple[str, Unit]] = {"bytes": ("bytes", BYTES), "macs": ("MACs", COUNT)}
    whole |= {"wall_seconds": ("time here", SECONDS), "server_seconds": ("the server's part", SECONDS)}
    if comparison.virtual:
        whole["virtual_seconds"] = ("virtual time", SECONDS)
    if comparison.target is not None:
        target = f"{100 * comparison.target:g}%" if is_share(metric) else f"{title(metric)} {comparison.target:g}"
        whole["rounds_to_target"] = (f"rounds to {target}", NUMBER)
        whole["seconds_to_target"] = (f"time to {target}", SECONDS)
    return [
        _grid(f"{heading(metric)} on the test set, {over}", comparison, scores, metric),
        _grid(f"Other scores of the global model, {over}", comparison, beside, metric),
        _grid(f"What a device spends in the whole run, {over}", comparison, device),
        _grid(f"The whole run, {over}", comparison, whole),
    ]


def ranking(comparison: Comparison) -> str:
    """Return the methods from the best to the worst, in words."""
    metric, summary = comparison.metric, comparison.summary()
    found = [f"{method} {shown(metric, summary[method][metric].mean or 0.0)}" for method in comparison.ranking]
    return f"Global model by {title(metric)}, the best first: {', '.join(found) or 'none was evaluated'}."


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
        f"devices: {devices}; seeds {seeds}.\n\n{ranking(comparison)}\n"
    )
    return "\n".join([head, *(grid.markdown() for grid in grids(comparison))])


def _grid(title: str, comparison: Comparison, columns: Mapping[str, tuple[str, Unit]], judged: str = "") -> Grid:
    """Return a table of some figures; scores' best is marked: by their own metric, or `judged` if they have none."""
    summary, seeds = list(comparison.summary().items()), len(comparison.seeds)
    rows = [
        [method, *(_cell(row.get(name), unit, seeds) for name, (_, unit) in columns.items())] for method, row in summary
    ]
    marked = set()
    for x, name in enumerate(columns, 1):
        means = {y: row[name].mean for y, (_, row) in enumerate(summary) if name in row and row[name].mean is not None}
        if judged and name != SERVED and len(means) > 1:
            top = best(name if name in (*comparison.metrics, LOSS) else judged, means.values())
            marked |= {(y, x) for y, mean in means.items() if mean == top}
    return Grid(title, ["method", *(head for head, _ in columns.values())], rows, marked=frozenset(marked))


def _cell(spread: Spread | None, unit: Unit, seeds: int) -> str:
    """Return a figure; how many seeds have it, if not all; a dash if none has."""
    if spread is None or spread.mean is None:
        return DASH
    some = f" ({spread.count} of {seeds})" if spread.count < seeds else ""
    return unit.write(spread.mean, spread.deviation) + some
