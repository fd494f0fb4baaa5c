"""Inputs in memory or, where it might not hold them, in files; and the test part of a data set that has none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from diastole.client.data import as_inputs
from diastole.client.errors import DataError
from diastole.client.sources.layout import arranged
from diastole.client.sources.mapped import InputFile, Mapped
from diastole.experiments.data.dataset import PART, Dataset, draw_examples, strata, without
from diastole.experiments.data.reading import Reading
from diastole.models.seeds import generator
from diastole.models.training import Examples


def room(reading: Reading, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be filled, in a new file `name` of the reading's spool if there is one."""
    if reading.spool is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(_file(reading.spool, name), "w+", np.dtype(dtype), shape)


def filled(reading: Reading, path: Path, name: str, x: NDArray[Any], y: Tensor, layout: bool = False) -> Examples:
    """Return the examples whose inputs were filled into `room(reading, name, ...)`, as models take them.

    `path` is named in errors. With `layout`, they are arranged as the reading says. Raises `DataError`.
    """
    kept = reading.layout if layout else ""
    if reading.spool is None:
        return Examples(as_inputs(path, name, arranged(path, name, x, kept)), y)
    return Mapped.of(InputFile(str(_file(reading.spool, name)), kept), y)


def whole(name: str, parts: Sequence[Examples], classes: int, users: Tensor | None, reading: Reading) -> Dataset:
    """Return the data set of a part to train on and one for the test, if there is one."""
    if len(parts) == 1:
        return with_test(name, parts[0], classes, users, reading)
    return Dataset(name, parts[0], parts[1], classes, users)


def with_test(name: str, examples: Examples, classes: int, users: Tensor | None, reading: Reading) -> Dataset:
    """Return a data set of which a share of each class is drawn for the test."""
    size = round(reading.test * len(examples))
    if not 0 < size < len(examples):
        raise DataError(
            f"data set {name!r}: a share of {reading.test:g} of {len(examples)} examples is {size} for the test; at "
            f"least 1 and at most {len(examples) - 1} are accepted"
        )
    test = draw_examples(strata(examples.y), size, generator(reading.seed, name, "test"), proportional=True)
    train = without(torch.arange(len(examples)), test)
    part = None if users is None else users[train]
    kept = _chosen(reading, examples, "x_train", train)
    return Dataset(name, kept, _chosen(reading, examples, "x_test", test.sort().values), classes, part)


def _chosen(reading: Reading, examples: Examples, name: str, index: Tensor) -> Examples:
    """Return the examples at `index`; if their inputs are in a file, in another file."""
    if not isinstance(examples, Mapped) or reading.spool is None:
        return examples.subset(index)
    array = examples.file.array
    copy = room(reading, name, (len(index), *array.shape[1:]), array.dtype)
    for start in range(0, len(index), PART):
        copy[start : start + PART] = array[index[start : start + PART].numpy()]
    return Mapped.of(InputFile(str(_file(reading.spool, name)), examples.file.layout), examples.y[index])


def _file(spool: Path, name: str) -> Path:
    return spool / f"{name}.npy"
