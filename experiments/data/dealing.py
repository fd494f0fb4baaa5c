"""What a partition is given and returns, and those that are not of this package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.models.allowed import allow, function
from diastole.models.errors import ModelError

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Dealing:
    """What a partition is given: the arguments of `partition`, and the draws of its seed and kind."""

    labels: Index
    devices: int
    seed: int
    alpha: float
    shards_per_device: int
    users: Index | None
    minimum: int
    balanced: bool
    partitioner: str
    options: Mapping[str, Any]
    draws: np.random.Generator


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """One way of dealing, as the registry knows it: `deal` returns one index a device, disjoint. Raises `DataError`."""

    deal: Callable[[Dealing], list[Index]]


def own(name: str) -> PartitionRow:
    """Return the partition of a function in a package of the user's, who has named it."""
    allow(name)
    try:
        return PartitionRow(function("partition", name))
    except ModelError as error:
        raise DataError(str(error)) from error


def checked(kind: str, parts: Any, it: Dealing) -> list[Index]:
    """Return what other packages have dealt. Raises `DataError` if it is no partition."""
    what = f"partition {kind!r}"
    try:
        found = [np.asarray(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} returns a {type(parts).__name__}; a list of places for each device is accepted"
        ) from error
    if len(found) != it.devices:
        raise DataError(f"{what} deals to {len(found)} devices; {it.devices} are accepted")
    if any(part.ndim != 1 or (len(part) and part.dtype.kind not in "iu") for part in found):
        raise DataError(f"{what} gives a device what is no list of whole numbers; such lists are accepted")
    everything = np.concatenate(found).astype(np.int64)
    wrong = everything[(everything < 0) | (everything >= len(it.labels))]
    if len(wrong):
        raise DataError(f"{what} deals example {wrong[0]}; 0 to {len(it.labels) - 1} are accepted")
    if len(np.unique(everything)) < len(everything):
        raise DataError(f"{what} deals an example to two devices; each to one at most is accepted")
    least = min(map(len, found))
    if least < it.minimum:
        raise DataError(
            f"{what} leaves a device {least} examples; at least {it.minimum}, partition.minimum, is accepted"
        )
    return [part.astype(np.int64) for part in found]
