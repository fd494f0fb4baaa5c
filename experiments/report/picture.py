"""The picture of a run: accuracy against rounds, against bytes and, with a population, against time in the field."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING

from diastole.models.methods.registry import METHODS
from diastole.server.events import RoundClosed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diastole.experiments.result import Dealt, Result

MANY_DEVICES = MANY_LABELS = 40
# Okabe and Ito's palette, which colour-blind people can tell apart.
GLOBAL, TIERS = "#000000", ("#0072B2", "#009E73", "#56B4E9", "#999933")
BASELINES = ("#D55E00", "#E69F00", "#CC79A7", "#882255")


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(result: "Result") -> bytes:
    """Return `figure` as a PNG."""
    return png(figure(result))


def figure(result: "Result") -> "Figure":
    """Return a figure: accuracy in % by round, by payload bytes moved so far and, in the field, by virtual time."""
    from matplotlib.figure import Figure

    panels = 3 if result.field else 2
    found = Figure(figsize=(6 * panels, 5), layout="constrained")
    by_round, by_bytes, *by_time = found.subplots(1, panels, sharey=True)
    method, rounds = result.experiment.method, result.rounds
    runs = [result, *result.baselines.values()]
    unit, size = time_unit(max(sum(r.seconds for r in run.rounds) for run in runs if run.field) if by_time else 0)
    _curve(by_round, range(1, len(rounds) + 1), [r.accuracy for r in rounds], GLOBAL, f"{method}: global", 2.5)
    _curve(by_bytes, _megabytes(rounds), [r.accuracy for r in rounds], GLOBAL, f"{method}: global", 2.5)
    for axes in by_time:
        _curve(axes, _elapsed(rounds, size), [r.accuracy for r in rounds], GLOBAL, f"{method}: global", 2.5)
    # A size that is the whole of it is the global model itself.
    sizes = dict.fromkeys(row.spec for row in result.tiers if row.spec)
    sizes.pop(result.whole.label, None)
    for label, colour in zip(sizes, TIERS, strict=False):
        scores = [r.tier_accuracy.get(label) for r in rounds]
        _curve(by_round, range(1, len(rounds) + 1), scores, colour, f"sub-model {label}", 1.5)
    for (name, other), colour in zip(result.baselines.items(), BASELINES, strict=False):
        scores = [r.accuracy for r in other.rounds]
        _curve(by_round, range(1, len(scores) + 1), scores, colour, title(name), 1.5, "--")
        if any(r.bytes_down for r in other.rounds):
            _curve(by_bytes, _megabytes(other.rounds), scores, colour, title(name), 1.5, "--")
        for axes in by_time if other.field else ():
            _curve(axes, _elapsed(other.rounds, size), scores, colour, title(name), 1.5, "--")
    experiment = result.experiment
    dealt = f", {result.dealt.kind} partition" if result.dealt else ""
    found.suptitle(f"{experiment.name}: {method}, {len(result.accounts)} devices{dealt}, seed {experiment.seed}")
    by_round.set(xlabel="round", ylabel="test accuracy (%)")
    by_bytes.set(xlabel="payload moved, all devices, both ways (MB)")
    for axes in by_time:
        axes.set(xlabel=f"virtual time in the field ({unit})")
    for axes in (by_round, by_bytes, *by_time):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="lower right", fontsize=9)
    return found


def title(method: str) -> str:
    """Return what a method is called in tables and pictures: a baseline by what it stands for."""
    return METHODS[method].baseline or method


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _curve(
    axes: "Axes",
    x: Sequence[float],
    scores: Sequence[float | None],
    colour: str,
    label: str,
    width: float,
    style: str = "-",
) -> None:
    points = [(a, 100 * b) for a, b in zip(x, scores, strict=True) if b is not None]
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=width, marker=marker, ms=3)


def _megabytes(rounds: Sequence[RoundClosed]) -> list[float]:
    return [total / 1e6 for total in accumulate(r.bytes_down + r.bytes_up for r in rounds)]


def draw_partition(result: "Result", dealt: "Dealt") -> bytes:
    """Return a PNG: how many examples of each label each device holds."""
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
    return png(figure)


def time_unit(longest: float) -> tuple[str, float]:
    """Return the unit for an axis that reaches to `longest` seconds, and its seconds."""
    units = (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0))
    return next((unit for unit in units if longest >= 2 * unit[1]), ("seconds", 1.0))


def _elapsed(rounds: Sequence[RoundClosed], unit: float) -> list[float]:
    return [total / unit for total in accumulate(r.seconds for r in rounds)]
