"""The picture of a sweep: the metric against each parameter."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diastole.experiments.comparison.picture import looks_of
from diastole.experiments.report.metric import scale
from diastole.experiments.sweep.result import SweepResult, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4
"""Panels in a row."""


def figure(result: SweepResult) -> "Figure":
    """Return a figure of a panel a parameter.

    A mark is a trial, at its value and its score, in the colour of its method; the best one's is large. Where values
    come from a list, a line joins the best score of each, and bars are one standard deviation over the seeds.
    """
    from matplotlib.figure import Figure

    keys = list(result.parameters)
    across = min(ACROSS, len(keys))
    down = -(-len(keys) // across)
    found = Figure(figsize=(4.6 * across + 1, 4.0 * down + 0.8), layout="constrained")
    panels = found.subplots(down, across, sharey=True, squeeze=False).flat
    factor = scale(result.of) if result.of else 1.0
    for key, axes in zip(keys, panels, strict=False):
        places = _places(axes, result.parameters[key])
        for method, look in looks_of(list(result.trials)).items():
            _points(axes, result, method, key, places, look["color"], factor)
        axes.set(xlabel=key)
        axes.grid(alpha=0.3)
    for axes in list(panels)[len(keys) :]:
        axes.set_visible(False)
    for axes in found.axes[::across]:
        axes.set(ylabel=f"{result.metric.replace('_', ' ')} ({'%' if factor != 1 else f'{result.better} is better'})")
    handles, labels = found.axes[0].get_legend_handles_labels()
    if len(result.trials) > 1:
        found.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False)
    found.suptitle(f"{result.experiment['name']}: on {result.selected_on}; large marks: the best", fontsize=11)
    return found


def _places(axes: "Axes", values: Any) -> Mapping[str, float] | None:
    """Prepare an axis for these values; return where each is if they are no numbers to be drawn to scale."""
    if isinstance(values, Mapping):
        if values["log"]:
            axes.set_xscale("log")
        return None
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or len(numbers) < 2:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return {str(value): float(place) for place, value in enumerate(values)}
    if min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
        axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.minorticks_off()
    return None


def _points(
    axes: "Axes",
    result: SweepResult,
    method: str,
    key: str,
    places: Mapping[str, float] | None,
    colour: str,
    factor: float,
) -> None:
    trials = [trial for trial in result.ranked(method) if trial.score.mean is not None and key in trial.values]
    if not trials:
        return
    x = [_place(trial, key, places) for trial in trials]
    y = [factor * (trial.score.mean or 0.0) for trial in trials]
    axes.scatter(x, y, s=22, color=colour, alpha=0.6, linewidth=0)
    axes.scatter(x[:1], y[:1], s=110, color=colour, edgecolor="black", linewidth=0.8, zorder=3, label=method)
    if isinstance(result.parameters[key], Mapping):
        return
    best = dict[float, Trial]()
    for place, trial in zip(x, trials, strict=True):
        best.setdefault(place, trial)
    along = sorted(best)
    axes.errorbar(
        along,
        [factor * (best[place].score.mean or 0.0) for place in along],
        yerr=[factor * (best[place].score.deviation or 0.0) for place in along],
        color=colour,
        linewidth=1.2,
        elinewidth=1,
        capsize=2,
    )


def _place(trial: Trial, key: str, places: Mapping[str, float] | None) -> float:
    value = trial.values[key]
    if places is None:
        return float(value)
    return places[str(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)]
