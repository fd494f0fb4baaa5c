"""How a data set is read, where that is not plain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.client.sources.layout import Layout


@dataclass(frozen=True, slots=True)
class Reading:
    """What an experiment says of its data.

    Attributes:
        seed: draws the test part of a data set that has none.
        test: the share of the examples that this part is, in (0, 1).
        layout: where the channels of images or series are that could be read in two ways; "grey" images have none.
        size: height and width, in pixels, that the images of a folder are scaled to; 0 leaves them as they are.
        label: the column of a table that holds the labels.
        user: the column of a table that holds the natural client of each row, if there is one.
        input: the column, or the array, that holds the inputs; empty for what can be told.
        seconds: how long sounds are, cut or filled with silence; 0 leaves them as they are.
        values: whether targets are values, and not classes.
        spool: a folder for inputs that memory may not hold, which then stay there; None keeps them in memory.

    """

    seed: int = 0
    test: float = 0.2
    layout: Layout = ""
    size: int = 0
    label: str = "label"
    user: str = "user"
    input: str = ""
    seconds: float = 0.0
    values: bool = False
    spool: Path | None = None


def numbered(values: NDArray[Any]) -> tuple[NDArray[np.int64], list[Any]]:
    """Return the position of each value among the different ones, sorted; and these."""
    names = sorted(set(values.tolist()), key=lambda name: (type(name).__name__, name))
    return _places(values, names), names


def numbered_like(what: str, values: NDArray[Any], names: Sequence[Any], of: str) -> NDArray[np.int64]:
    """Return the position of each label of `what` among those of `of`. Raises `DataError` for one that is not there."""
    places = _places(values, names)
    if (places < 0).any():
        wrong = values.tolist()[int(np.argmin(places))]
        raise DataError(f"{what} holds {str(wrong)[:100]!r}, which is no label of {of}")
    return places


def _places(values: NDArray[Any], names: Sequence[Any]) -> NDArray[np.int64]:
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(value, -1) for value in values.tolist()], dtype=np.int64)


def gaps_in(what: str, labels: torch.Tensor, classes: int) -> str:
    """Return a line that says how many classes never occur; empty if all do.

    Raises `DataError` if more than half never do: a network would have a row for each of them.
    """
    present = int((labels.bincount() > 0).sum())
    if 2 * present < classes:
        raise DataError(
            f"{what} holds {present} different labels between {int(labels.min())} and {classes - 1}; labels that are "
            f"numbered from 0 to {present - 1} are accepted"
        )
    gaps = classes - present
    return f"{what}: {gaps} of the {classes} classes from 0 to {classes - 1} never occur" if gaps else ""
