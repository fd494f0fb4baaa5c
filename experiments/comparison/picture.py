"""The picture of a comparison: scores against what devices moved and computed, and what each tier ended with."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

from diastole.experiments.comparison.comparison import Comparison
from diastole.experiments.comparison.runs import RoundResult, RunResult
from diastole.experiments.comparison.spread import Spread
from diastole.experiments.report.figures import label_ends
from diastole.experiments.report.metric import axis, scale
from diastole.experiments.report.picture import time_unit
from diastole.models.methods.registry import METHODS
from diastole.models.metrics import LOSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, then darker shades for those who compare more.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#332288", "#882255", "#117733", "#999933", "#AA4499", "#44AA99", "#661100"),
)
# Baselines are grey and told apart by their dashes, so that the colours are left to the methods.
GREYS = ("#222222", "#777777", "#444444", "#999999", "#5F5F5F")
DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (8, 4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TIER_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000", "#999933")

SPENT: Mapping[str, tuple[str, Callable[[RoundResult], float]]] = {
    "rounds": ("rounds", lambda closed: 1.0),
    "bytes": ("payload moved, all devices, both ways (MB)", lambda closed: closed.bytes / 1e6),
    "macs": ("training work of all devices (GMAC)", lambda closed: closed.macs / 1e9),
}
"""By the name of a panel: the title of its axis, and what a round adds to it."""


def figure(comparison: Comparison) -> "Figure":
    """Return a figure of five panels, or six with a population.

    The score by which runs are judged (shares in %) against rounds and, on logarithmic axes, payload bytes moved so
    far, the devices' multiply-accumulates so far and, with a population, virtual time, and the loss against bytes: a
    line a method, the mean over seeds, in a band of one standard deviation. Where spending was made equal, lines are
    those of the runs that the table reads, and a dotted line is the allowance. A method without devices is a line right
    across. Then each tier's score after the experiment's rounds, by method.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    methods, metric = list(comparison.runs), comparison.metric
    height = max(5.0, 2.0 + 0.3 * len(methods))
    found = Figure(figsize=(21, 2 * height), layout="constrained")
    below = ["seconds", "loss", "tiers"] if comparison.virtual else ["loss", "tiers", "tiers"]
    panels = found.subplot_mosaic([["rounds", "bytes", "macs"], below])  # type: ignore[list-item]
    looks, shade = looks_of(methods), min(0.14, 1.0 / len(methods))
    drawn = {kind: (metric, *spent) for kind, spent in SPENT.items()}
    drawn["loss"] = (LOSS, *SPENT["bytes"])
    if comparison.virtual:
        every = [run for runs in comparison.runs.values() for run in runs]
        unit, size = time_unit(max(sum(closed.seconds for closed in run.rounds) for run in every))
        drawn["seconds"] = (metric, f"virtual time ({unit})", lambda closed: closed.seconds / size)
    for panel, (name, label, of_round) in drawn.items():
        axes = panels[panel]
        if name == metric and panel != "rounds":
            # Before there is anything in it: who shares limits later takes those of the moment.
            axes.sharey(panels["rounds"])
        for method, runs in _runs(comparison, "bytes" if panel == "loss" else panel).items():
            _line(axes, runs, name, of_round, method, looks[method], shade)
        axes.set(xlabel=label, ylabel=axis(name, "global model, test"))
        axes.grid(alpha=0.3)
        if panel == "rounds":
            continue
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for equal in comparison.equal:
        of_one = SPENT[equal.by][1]
        spent = statistics.fmean(sum(map(of_one, run.rounds)) for run in comparison.runs[equal.anchor])
        panels[equal.by].axvline(spent, color="#777777", linewidth=1, linestyle=":", zorder=0)
    _tiers(panels["tiers"], comparison)
    handles, labels = panels["rounds"].get_legend_handles_labels()
    labelled = [label_ends(panels[panel], 0.75 * height) for panel in drawn if panels[panel].lines]
    if handles and not all(labelled):
        found.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
    found.suptitle(_title(comparison))
    return found


def _runs(comparison: Comparison, panel: str) -> Mapping[str, Sequence[RunResult]]:
    """Return the runs that a panel draws: where its spending was made equal, those that the table reads."""
    for equal in comparison.equal:
        if equal.by == panel:
            return {
                method: [
                    reading.run if reading else run for run, reading in zip(runs, equal.readings[method], strict=True)
                ]
                for method, runs in comparison.runs.items()
            }
    return comparison.runs


def _title(comparison: Comparison) -> str:
    experiment, seeds = comparison.experiment, comparison.seeds
    devices = sum(tier["devices"] for tier in experiment["tiers"].values())
    numbers = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds, bands of ± 1 standard deviation"
    drawn = f" of {comparison.population}" if comparison.population else ""
    return f"{experiment['name']}: {devices} devices{drawn}, {experiment['partition']['kind']} partition; {numbers}"


def looks_of(methods: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Return colour, dashes and mark of each method."""
    looks, own, others = dict[str, dict[str, Any]](), 0, 0
    for method in methods:
        if method in METHODS and METHODS[method].baseline:
            looks[method] = {
                "color": GREYS[others % len(GREYS)],
                "linestyle": DASHES[others % len(DASHES)],
                "marker": MARKERS[-1 - others % len(MARKERS)],
            }
            others += 1
        else:
            looks[method] = {
                "color": COLOURS[own % len(COLOURS)],
                # More methods than colours.
                "linestyle": ("-", "--", ":")[own // len(COLOURS) % 3],
                "marker": MARKERS[own % len(MARKERS)],
            }
            own += 1
    return looks


def _line(
    axes: "Axes",
    runs: Sequence[RunResult],
    name: str,
    spent: Callable[[RoundResult], float],
    method: str,
    look: Mapping[str, Any],
    shade: float,
) -> None:
    """Draw one method: what it has spent so far against its score, over the rounds that were evaluated.

    A run that ended before those of other seeds stays where it is.
    """
    curves = [_points(run, name, spent) for run in runs]
    columns = list(zip_longest(*curves)) if all(curves) else []
    if not columns:
        return
    columns = [tuple(point or curve[-1] for point, curve in zip(column, curves, strict=True)) for column in columns]
    x = [statistics.fmean(point[0] for point in column) for column in columns]
    spreads = [Spread.of(scale(name) * point[1] for point in column) for column in columns]
    y = [math.nan if spread.mean is None else spread.mean for spread in spreads]
    low = [mean - (spread.deviation or 0.0) for mean, spread in zip(y, spreads, strict=True)]
    high = [mean + (spread.deviation or 0.0) for mean, spread in zip(y, spreads, strict=True)]
    if x[-1] <= 0:
        axes.axhline(y[-1], label=method, linewidth=1.8, color=look["color"], linestyle=look["linestyle"])
        axes.axhspan(low[-1], high[-1], color=look["color"], alpha=shade, linewidth=0)
        return
    # One mark, at the end, tells lines apart that colours do not.
    axes.plot(x, y, label=method, linewidth=1.8, markersize=7, markevery=[len(x) - 1], **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=shade, linewidth=0)


def _points(run: RunResult, name: str, spent: Callable[[RoundResult], float]) -> list[tuple[float, float]]:
    totals = accumulate(map(spent, run.rounds))
    return [(x, closed.scores[name]) for x, closed in zip(totals, run.rounds, strict=True) if closed.scores]


def _tiers(axes: "Axes", comparison: Comparison) -> None:
    """Draw a row a method with a mark a tier."""
    summary, methods, metric = comparison.summary(), list(comparison.runs), comparison.metric
    for number, tier in enumerate(comparison.tiers):
        rows = [(row, summary[method].get(f"{metric}/{tier}")) for row, method in enumerate(methods)]
        found = [(row, s.mean, s.deviation or 0.0) for row, s in rows if s is not None and s.mean is not None]
        if not found:
            continue
        # Marks of tiers that ended alike would cover each other.
        shift = 0.5 * (number / max(1, len(comparison.tiers) - 1) - 0.5)
        axes.errorbar(
            [scale(metric) * mean for _, mean, _ in found],
            [row + shift for row, _, _ in found],
            xerr=[scale(metric) * deviation for _, _, deviation in found],
            fmt=MARKERS[number % len(MARKERS)],
            color=TIER_COLOURS[number % len(TIER_COLOURS)],
            label=tier,
            markersize=5,
            elinewidth=1,
            capsize=2,
        )
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set(xlabel=axis(metric, "each tier's own size, test"))
    axes.grid(axis="x", alpha=0.3)
    for row in range(1, len(methods)):
        axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8)
    if axes.containers:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
