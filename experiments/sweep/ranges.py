"""Where a search looks for a key's values unless it is told where: wide ranges around what suits small networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from diastole.experiments import toml
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.experiments.sweep.space import Range

Space = Range | tuple[Any, ...]


def _log(low: float, high: float) -> Range:
    return Range(low=low, high=high, log=True)


SPACES: Mapping[str, Space] = {
    "training.learning_rate": _log(0.002, 0.5),
    "training.batch_size": (8, 16, 32, 64, 128),
    "training.epochs": Range(low=1, high=5),
    "training.momentum": Range(low=0.0, high=0.95),
    "training.weight_decay": _log(1e-6, 1e-2),
    "training.smoothing": Range(low=0.0, high=0.3),
    "training.balance": Range(low=0.0, high=1.0),
    "training.clip": _log(0.1, 10.0),
    "training.schedule": ("constant", "cosine"),
    "server.learning_rate": _log(0.1, 3.0),
    "server.beta1": Range(low=0.0, high=0.95),
    "proxy.learning_rate": _log(0.0005, 0.1),
    "proxy.epochs": Range(low=0, high=5),
    "proxy.momentum": Range(low=0.0, high=0.95),
}
ADAPTIVE: Mapping[str, Space] = {"training.learning_rate": _log(1e-4, 0.03), "server.learning_rate": _log(1e-3, 0.3)}
"""Of optimisers that divide by the root of a second moment."""


def space_of(key: str, experiment: Experiment) -> Space:
    """Return where a search looks for the values of a key. Raises `ExperimentError` if that is not known."""
    adaptive = {
        "training.learning_rate": experiment.training.optimiser == "adam",
        "server.learning_rate": experiment.optimiser.name in ("fedadam", "fedyogi"),
    }
    found = ADAPTIVE[key] if adaptive.get(key) else SPACES.get(key)
    if found is None:
        raise ExperimentError(
            f"{key[:100]}: no range is known for it; give --range KEY=LOW..HIGH or --grid KEY=value,value. Known: "
            f"{', '.join(SPACES)}"
        )
    return found


def ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Return the ranges in `table.key=low..high` texts, logarithmic from a factor of ten on.

    Raises `ExperimentError`.
    """
    found = dict[str, Range]()
    for text in texts:
        key, _, value = text.partition("=")
        low, high = (
            toml.Override.read(f"{key or '?'}={part.strip()}").value for part in (*value.partition(".."), "")[:3:2]
        )
        if not key.strip() or not all(
            isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)
        ):
            raise ExperimentError(f"{text[:100]!r}: a range reads table.key=low..high")
        if low >= high:
            raise ExperimentError(f"{text[:100]!r}: the lower end, {low:g}, must be below the higher one, {high:g}")
        found[key.strip()] = Range(low=low, high=high, log=low > 0 and high >= 10 * low)
    return found
