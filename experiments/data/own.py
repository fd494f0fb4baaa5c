"""A data set of one's own: what a function in a package of the user's returns."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import filled, room, whole
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.targets import Column, targets
from diastole.models.allowed import allow, function
from diastole.models.errors import brief
from diastole.proto.errors import DiastoleError


def load(name: str, path: Path | None, reading: Reading) -> Dataset:
    """Return the data set that a function, "package.module:function", returns.

    The function takes the path, if there is one. It returns a `Dataset`; or a torch `Dataset`, of which a share is
    drawn for the test; or two of them, to train on and to test on. Their items are pairs (x, y), of one shape each,
    and are read once, in order. Whoever calls this has the name from the user, whose code it is. Raises `DataError`,
    also for what that code raises.
    """
    allow(name)
    try:
        made = function("data set", name)
        found = made() if path is None else made(path)
        if isinstance(found, Dataset):
            return found
        given = dict(zip(("x_train", "x_test"), found, strict=True)) if isinstance(found, tuple) else {"x": found}
        read = {key: _read(key, part, reading) for key, part in given.items()}
        columns = [Column(Path(name), f"y of {key}", y, key, len(y)) for key, (_, y) in read.items()]
        y, classes = targets(columns, reading)
        parts = [
            filled(reading, Path(name), key, x, each, layout=True)
            for (key, (x, _)), each in zip(read.items(), y, strict=True)
        ]
    except DiastoleError as error:
        raise DataError(str(error)) from error
    except Exception as error:
        raise DataError(f"data set {name}: {brief(error)}") from error
    return whole(name, parts, classes, None, reading)


def _read(key: str, given: Any, reading: Reading) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inputs and the targets of a torch `Dataset`, `[n, ...]` each."""
    items = given if hasattr(given, "__len__") and hasattr(given, "__getitem__") else list(given)
    x, y = room(reading, key, (0,), np.float32), list[NDArray[Any]]()
    for number in range(len(items)):
        inputs, target = (np.asarray(each) for each in items[number])
        if not number:
            kinds = {"f": np.float32, "u": np.uint8 if inputs.dtype == np.uint8 else np.int64, "i": np.int64}
            x = room(reading, key, (len(items), *inputs.shape), kinds.get(inputs.dtype.kind, inputs.dtype))
        if inputs.shape != x.shape[1:] or target.shape != (y[0] if y else target).shape:
            raise ValueError(
                f"item {number} of {key} is {list(inputs.shape)}, {list(target.shape)}; items of one shape are accepted"
            )
        x[number] = inputs
        y.append(target)
    return x, np.stack(y) if y else np.empty(0)
