"""What came of a sweep, for a terminal and for files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diastole.cli.grid import Grid
from diastole.cli.units import SCORE, SHARE
from diastole.experiments.comparison.spread import Spread
from diastole.experiments.report.figures import can_draw, write_figures
from diastole.experiments.report.metric import is_share
from diastole.experiments.sweep.picture import figure
from diastole.experiments.sweep.result import SweepResult, Trial
from diastole.proto.files import write_bytes
from diastole.simulations.simulation import Simulation
from diastole.simulations.sweep import best_file

MOST_ROWS = 100


def best(result: SweepResult) -> Grid:
    """Return a row a method: its best values, and what they came to."""
    rows = [[method, *_row(result, result.best(method)), str(len(trials))] for method, trials in result.trials.items()]
    return Grid(f"Best by {_by(result)}", ["method", *result.parameters, result.metric, "of trials"], rows)


def trials(result: SweepResult, method: str) -> Grid:
    """Return a row a trial, the best first."""
    ranked = result.ranked(method)[:MOST_ROWS]
    rows = [[str(trial.number), *_row(result, trial)] for trial in ranked]
    return Grid(f"Trials of {method}, by {_by(result)}", ["trial", *result.parameters, result.metric], rows)


def markdown(result: SweepResult) -> str:
    """Return every table as Markdown."""
    return "\n".join(grid.markdown() for grid in (best(result), *(trials(result, method) for method in result.trials)))


def write(result: SweepResult, settings: Simulation, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write what came of a sweep, and for each method an experiment of its best values; return the paths."""
    texts = {"sweep.json": json.dumps(result.as_dict(), indent=2) + "\n", "sweep.md": markdown(result)}
    texts |= {f"best-{method}.toml": best_file(settings, result, method) for method in result.trials}
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    return [*(folder / name for name in texts), *write_figures(folder, {"sweep": _picture(result)}, kinds)]


def _picture(result: SweepResult) -> Any:
    return figure(result) if can_draw() else None


def _by(result: SweepResult) -> str:
    seeds = f"mean of {len(result.seeds)} seeds" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    return f"{result.metric} on {result.selected_on}, {seeds}"


def _row(result: SweepResult, trial: Trial) -> Sequence[str]:
    score = f"ended behind round {trial.pruned}" if trial.pruned else _score(result, trial.score)
    return [*(_value(trial.values.get(key)) for key in result.parameters), score]


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _score(result: SweepResult, score: Spread) -> str:
    unit = SHARE if result.of and is_share(result.of) else SCORE
    return "-" if score.mean is None else unit.write(score.mean, score.deviation)
