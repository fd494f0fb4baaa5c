"""Labels as the model numbers them.

A device may have examples of some classes only, so it cannot number names in their order, as an experiment does: the
names of all the model's classes are said, or the labels are numbers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.data import as_targets
from diastole.client.errors import DataError
from diastole.client.sources.settings import Settings

LONGEST = 9
"""The most digits of a number: more classes than any model has."""

HINT = "--set 'data.classes=[\"NAME\", ...]' says the names of the model's classes in their order"


def number_of(what: str, label: str, classes: Sequence[str]) -> int:
    """Return the number of a class: its place in `classes`, or without these the number that it is.

    Raises `DataError`, which begins with `what`.
    """
    if label in classes:
        return classes.index(label)
    if classes:
        raise DataError(f"{what} {label[:100]!r} is no class; {', '.join(classes)[:500]} are accepted (data.classes)")
    if not label.isdecimal() or len(label) > LONGEST:
        raise DataError(f"{what} {label[:100]!r} is no number of a class from 0 on; {HINT}")
    return int(label)


def numbers_of(what: str, labels: Iterable[object], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of the class of each label, int64 `[n]`. Raises `DataError`."""
    numbers = dict[str, int]()
    names = [str(label) for label in labels]
    for name in names:
        if name not in numbers:
            numbers[name] = number_of(what, name, classes)
    return np.array([numbers[name] for name in names], np.int64)


def targets_of(path: Path, key: str, values: NDArray[Any], of: str, count: int, settings: Settings) -> Tensor:
    """Return targets `[count, ...]` as a device trains on them. Raises `DataError` naming `key`."""
    if settings.values:
        if values.dtype.kind not in "biuf":
            raise DataError(f"{path}: {key} holds {str(values[0])[:100]!r}; with data.values, numbers are accepted")
        values = values.astype(np.float64)
    elif values.ndim == 1 and (settings.classes or values.dtype.kind == "U"):
        values = numbers_of(f"{path}: {key}: label", values.tolist(), settings.classes)
    return as_targets(path, key, values, of, count, 2**31)
