"""What `diastole tune` has found: added to what was found before, and checked before a comparison uses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diastole.experiments.sweep.result import SweepResult
from diastole.experiments.sweep.tuned import FILE, Tuned
from diastole.simulations.compare import document_of
from diastole.simulations.compared import NEUTRAL, Files, planned_runs
from diastole.simulations.simulation import Simulation


def values_of(
    tuned: Tuned, where: Path, settings: Simulation, methods: Sequence[str], files: Files
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return what was found for each method, and how. Raises `ExperimentError` if it was for another experiment."""
    tuned.check(document_of(settings), _digest(settings, tuned.seed, files), where, methods)
    return tuned.values(methods, where), {"path": str(where)} | tuned.sources(methods)


def earlier(settings: Simulation, methods: Sequence[str], files: Files) -> Tuned | None:
    """Return what the files' folder has for other methods of an experiment; None for nothing.

    Raises `ExperimentError` if it was found for another experiment.
    """
    path = files.folder / FILE
    if not path.exists():
        return None
    found = Tuned.read(path)
    found.check(document_of(settings), _digest(settings, found.seed, files), path, [*found.methods, *methods])
    return found


def joined(settings: Simulation, before: Tuned | None, result: SweepResult, command: str, files: Files) -> Tuned:
    """Return what a sweep has found together with what was found `before` for other methods."""
    new = Tuned.of(result, settings.seed, _digest(settings, settings.seed, files), command)
    return new.model_copy(update={"methods": {**(before.methods if before else {}), **new.methods}})


def _digest(settings: Simulation, seed: int, files: Files) -> str:
    (run, *_) = planned_runs(settings, [NEUTRAL], [seed])
    return files.digest(run)
