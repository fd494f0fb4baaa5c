"""A data set of one's own: what a function in a package of the user's returns."""

from functools import partial
from pathlib import Path

from diastole.client.errors import DataError
from diastole.client.sources.items import read_items
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
        read = {key: read_items(key, part, partial(room, reading)) for key, part in given.items()}
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
