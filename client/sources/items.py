"""The items of a torch `Dataset`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.sources.images import Room, in_memory


def read_items(key: str, given: Any, room: Room = in_memory) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inputs and the targets of a torch `Dataset`, `[n, ...]` each.

    Its items are pairs (x, y) of one shape each, and are read once, in order; `key` names it in errors. Raises
    `ValueError`, and what its code raises.
    """
    items = given if hasattr(given, "__len__") and hasattr(given, "__getitem__") else list(given)
    x, y = room(key, (0,), np.float32), list[NDArray[Any]]()
    for number in range(len(items)):
        inputs, target = (np.asarray(each) for each in items[number])
        if not number:
            kinds = {"f": np.float32, "u": np.uint8 if inputs.dtype == np.uint8 else np.int64, "i": np.int64}
            x = room(key, (len(items), *inputs.shape), kinds.get(inputs.dtype.kind, inputs.dtype))
        if inputs.shape != x.shape[1:] or target.shape != (y[0] if y else target).shape:
            raise ValueError(
                f"item {number} of {key} is {list(inputs.shape)}, {list(target.shape)}; items of one shape are accepted"
            )
        x[number] = inputs
        y.append(target)
    return x, np.stack(y) if y else np.empty(0)
