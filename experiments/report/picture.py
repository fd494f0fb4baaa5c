"""The picture of a run: scores against rounds, against bytes and, with a population, against time in the field."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING, Any

from diastole.experiments.personal import spread
from diastole.experiments.report.figures import label_ends
from diastole.experiments.report.metric import axis, scale
from diastole.models.methods.registry import METHODS
from diastole.models.metrics import LOSS, better, shown
from diastole.server.events import RoundClosed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diastole.experiments.result import Dealt, Result

MANY_DEVICES = MANY_LABELS = 40
# Okabe and Ito's palette, which colour-blind people can tell apart.
GLOBAL, TIERS = "#000000", ("#0072B2", "#009E73", "#56B4E9", "#999933")


def figure(result: "Result") -> "Figure":
    """Return a figure: the scores that the run is judged by, by round, by payload bytes and, in the field, by time.

    One more panel has the loss by round. Shares are in %; bytes are those moved so far, and time is virtual.
    """
    from matplotlib.figure import Figure

    metric, rounds = result.metric, result.rounds
    unit, size = time_unit(sum(r.seconds for r in rounds) if result.field else 0)
    found = Figure(figsize=(12, 9) if result.field else (18, 5), layout="constrained")
    panels = found.subplots(*((2, 2) if result.field else (1, 3))).flatten()
    by_round, by_bytes, by_loss, *by_time = panels
    look: dict[str, Any] = {"color": GLOBAL, "linewidth": 2.5}
    label = f"{title(result.experiment.method)}: global"
    scores, losses = ([(r.scores or {}).get(key) for r in rounds] for key in (metric, LOSS))
    numbers = range(1, len(scores) + 1)
    _curve(by_round, numbers, scores, scale(metric), label, look)
    _curve(by_loss, numbers, losses, 1.0, label, look)
    _curve(by_bytes, _megabytes(rounds), scores, scale(metric), label, look)
    for axes in by_time:
        _curve(axes, _elapsed(rounds, size), scores, scale(metric), label, look)
    # A size that is the whole of it is the global model itself.
    sizes = dict.fromkeys(row.spec for row in result.tiers if row.spec)
    sizes.pop(result.whole.label, None)
    for label, colour in zip(sizes, TIERS, strict=False):
        look = {"color": colour, "linewidth": 1.5}
        for axes, key, factor in ((by_round, metric, scale(metric)), (by_loss, LOSS, 1.0)):
            scores = [r.tier_scores.get(label, {}).get(key) for r in rounds]
            _curve(axes, range(1, len(rounds) + 1), scores, factor, f"sub-model {label}", look)
    experiment = result.experiment
    dealt = f", {result.dealt.kind} partition" if result.dealt else ""
    found.suptitle(
        f"{experiment.name}: {experiment.method}, {len(result.accounts)} devices{dealt}, seed {experiment.seed}"
    )
    by_round.set(xlabel="round", ylabel=axis(metric))
    by_bytes.set(xlabel="payload moved, all devices, both ways (MB)", ylabel=axis(metric))
    by_loss.set(xlabel="round", ylabel=axis(LOSS))
    for axes in by_time:
        axes.set(xlabel=f"virtual time in the field ({unit})", ylabel=axis(metric))
    for axes in (by_bytes, *by_time):
        axes.sharey(by_round)
    for axes in panels:
        axes.grid(alpha=0.3)
    for axes in panels:
        if axes.lines and not label_ends(axes, 0.8 * found.get_figheight() / (2 if result.field else 1)):
            rising = axes is not by_loss and better(metric) == "higher"
            axes.legend(loc="lower right" if rising else "upper right", fontsize=9)
    return found


def title(method: str) -> str:
    """Return what a method is called in tables and pictures: a baseline by what it stands for."""
    return METHODS[method].baseline or method


def _curve(
    axes: "Axes",
    x: Sequence[float],
    scores: Sequence[float | None],
    factor: float,
    label: str,
    look: Mapping[str, Any],
) -> None:
    points = [(a, factor * b) for a, b in zip(x, scores, strict=True) if b is not None and isfinite(b)]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, ms=3, **look)


def _megabytes(rounds: Sequence[RoundClosed]) -> list[float]:
    return [total / 1e6 for total in accumulate(r.bytes_down + r.bytes_up for r in rounds)]


def partition_figure(result: "Result", dealt: "Dealt") -> "Figure":
    """Return a figure: how many examples of each label each device holds."""
    from matplotlib.figure import Figure

    counts = dealt.counts().T
    labels, devices = counts.shape
    figure = Figure(figsize=(min(14, 4 + 0.3 * devices), 2.5 + 0.3 * min(labels, MANY_LABELS)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(image, label="examples")
    axes.set(xlabel="device", ylabel="label", yticks=range(labels) if labels <= MANY_LABELS else [])
    if devices <= MANY_DEVICES:
        axes.set_xticks(range(devices), sorted(result.accounts), rotation=60, ha="right", fontsize=8)
    axes.set_title(f"{result.experiment.name}: {dealt.kind}, {int(counts.sum())} examples")
    return figure


def personal_figure(result: "Result") -> "Figure":
    """Return a figure: the devices' scores on examples of their own, from the worst device to the best, both times."""
    from matplotlib.figure import Figure

    metric = result.metric
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    worst_first = better(metric) == "higher"
    for (when, found), colour in zip(spread(result.personal, metric).items(), ("#777777", TIERS[0]), strict=True):
        values = [scale(metric) * getattr(device, when)[metric] for device in result.personal.values()]
        count = len(values)
        places = [100 * (k + 0.5) / count for k in range(count)]
        marker = "o" if count < 30 else None
        label = f"{when} its own training: mean {shown(metric, found.mean)}"
        axes.plot(places, sorted(values, reverse=not worst_first), color=colour, label=label, marker=marker, ms=4)
    axes.set(xlabel="devices, the worst first (%)", ylabel=axis(metric, "on the device's own examples,"), xlim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right" if worst_first else "upper right")
    axes.set_title(f"{result.experiment.name}: {result.experiment.method}, {len(result.personal)} devices")
    return figure


def time_unit(longest: float) -> tuple[str, float]:
    """Return the unit for an axis that reaches to `longest` seconds, and its seconds."""
    units = (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0))
    return next((unit for unit in units if longest >= 2 * unit[1]), ("seconds", 1.0))


def _elapsed(rounds: Sequence[RoundClosed], unit: float) -> list[float]:
    return [total / unit for total in accumulate(r.seconds for r in rounds)]
