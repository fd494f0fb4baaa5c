"""Targets of any shape, as a file has them: labels that are numbered, or values."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.data import as_targets
from diastole.client.errors import DataError
from diastole.experiments.data.reading import Reading, gaps_in, numbered, numbered_like

LOG = logging.getLogger(__name__)
MAX_CLASSES = 65_536


@dataclass(frozen=True, slots=True)
class Column:
    """The targets of a part, as they are found.

    Attributes:
        path: of the file, for errors.
        key: the name of the array or the column, for errors.
        values: `[n, ...]`.
        of: the name of the inputs, for errors.
        count: of examples.

    """

    path: Path
    key: str
    values: NDArray[Any]
    of: str
    count: int


def targets(
    columns: Sequence[Column], reading: Reading, classes: int | None = None, *, renumber: bool = False
) -> tuple[list[Tensor], int]:
    """Return the targets of each part, and the number of classes, which is 1 for values.

    Args:
        columns: the part to train on, and maybe that for the test.
        reading: says whether targets are values.
        classes: how many there are; by default as the labels to train on tell.
        renumber: number single labels in their order, wherever they begin and whatever lies between them.

    Raises `DataError` naming the column.

    """
    if reading.values:
        return [_values(column) for column in columns], 1
    found = [column.values for column in columns]
    kinds = {values.dtype.kind for values in found}
    if kinds == {"U"} or (renumber and kinds <= set("biuf") and all(_are_labels(values) for values in found)):
        first, names = numbered(found[0])
        if renumber:
            classes = len(names)
        of = columns[0].key if columns[0].path == columns[-1].path else columns[0].path.name
        what = f"{columns[-1].path}: {columns[-1].key}"
        found = [first, *(numbered_like(what, values, names, of) for values in found[1:])]
    y = [_targets(columns[0], found[0], classes or MAX_CLASSES)]
    floats = y[0].is_floating_point()
    if classes is None:
        classes = 1 if floats else int(y[0].max()) + 1
        line = "" if y[0].ndim > 1 or floats else gaps_in(f"{columns[0].path}: {columns[0].key}", y[0], classes)
        if line:
            LOG.warning(line)
    for column, values in zip(columns[1:], found[1:], strict=True):
        there = _targets(column, values, MAX_CLASSES if floats else classes)
        y.append(there.float() if floats else there)
    return y, classes


def _are_labels(values: NDArray[Any]) -> bool:
    """Return whether there is one whole number for each example."""
    return values.ndim == 1 and (values.dtype.kind != "f" or bool((values == np.round(values)).all()))


def _targets(column: Column, values: NDArray[Any], limit: int) -> Tensor:
    return as_targets(column.path, column.key, values, column.of, column.count, limit)


def _values(column: Column) -> Tensor:
    if column.values.dtype.kind not in "biuf":
        raise DataError(
            f"{column.path}: {column.key} is {column.values.dtype} {list(column.values.shape)}; the loss takes numbers"
        )
    return _targets(column, column.values.astype(np.float64), MAX_CLASSES)
