"""The partitioners of flwr-datasets, dealing out this experiment's examples."""

import os
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np

from diastole.client.errors import DataError
from diastole.experiments.data.dealing import Index, PartitionRow
from diastole.experiments.data.partitions import check_alpha
from diastole.models.seeds import derive_seed
from diastole.proto.missing import needed

NATURAL = ("NaturalIdPartitioner", "GroupedNaturalIdPartitioner")
# The base class, one that wants a function, which no file holds, and those that deal out columns.
UNFIT = ("Partitioner", "IdToSizeFncPartitioner", "VerticalEvenPartitioner", "VerticalSizePartitioner")


def deal(
    name: str, options: Mapping[str, Any], labels: Index, users: Index | None, devices: int, seed: int
) -> list[Index]:
    """Deal examples to devices with a partitioner of flwr-datasets.

    It is given no examples, only the columns "label" and, if there are natural clients, "user", shuffled as Flower's
    `FederatedDataset` does: some partitioners just cut them into pieces.

    Args:
        name: of the partitioner's class.
        options: arguments of its constructor. Where it takes them and they are not given, `partition_by` is "label",
            for natural ids "user"; `partition_sizes` are equal; and `seed` derives from the run's.
        labels: `[n]`.
        users: `[n]`, the natural client of each example.
        devices: the partitions that are to come out.
        seed: of the run.

    Returns:
        The positions of each device's examples. No example is dealt twice; a partitioner may leave some out, and may
        leave a device none.

    Raises:
        DataError: flwr-datasets is not installed, `name` or an option is not known, or what they ask for cannot be.

    """
    dataset, library = _library()
    names = [known for known in library.__all__ if known not in UNFIT]
    if name not in names:
        raise DataError(f"partition 'flwr': partitioner is {name!r}; accepted: {', '.join(names)}")
    make = getattr(library, name)
    # Labels as Flower's own data sets have them: 0, 1, 2, …
    columns = {"label": np.unique(labels, return_inverse=True)[1]} | ({} if users is None else {"user": users})
    arguments = _arguments(name, make, options, len(labels), devices, seed)
    by = arguments.get("partition_by", "label")
    if by not in list(columns):
        raise DataError(f"partition 'flwr': partition_by of {name} is {by!r}; accepted here: {', '.join(columns)}")
    if isinstance(arguments.get("alpha"), int | float):
        check_alpha("flwr", arguments["alpha"])
    order = np.random.default_rng(derive_seed(seed, "partition", "flwr")).permutation(len(labels))
    try:
        if "distribution_array" in arguments:
            arguments["distribution_array"] = np.array(arguments["distribution_array"], np.float64)
        partitioner = make(**arguments)
        partitioner.dataset = dataset.from_dict({"index": order} | {key: held[order] for key, held in columns.items()})
        count = partitioner.num_partitions
        parts = [np.array(partitioner.load_partition(k)["index"][:], np.int64) for k in range(min(count, devices))]
    except Exception as error:  # noqa: BLE001 (whatever it is that the library says of its options)
        raise DataError(f"partition 'flwr': {name}: {_one_line(error)}") from None
    if count != devices:
        raise DataError(f"partition 'flwr': devices is {devices}; {count}, the partitions of {name}, is accepted")
    return parts


def _arguments(
    name: str, make: Any, options: Mapping[str, Any], examples: int, devices: int, seed: int
) -> dict[str, Any]:
    """Return the arguments for a partitioner's constructor. Raises `DataError` for one unknown or missing."""
    taken = signature(make).parameters
    ours = {"num_partitions": devices} if "num_partitions" in taken else {}
    for option in options:
        if option not in taken or option in ours:
            accepted = ", ".join(key for key in taken if key not in ours) or "none"
            raise DataError(f"partition 'flwr': {name} takes no option {option!r} here; accepted: {accepted}")
    usual = {
        "partition_by": "user" if name in NATURAL else "label",
        "partition_sizes": [examples // devices + (device < examples % devices) for device in range(devices)],
        "seed": derive_seed(seed, "partition", name),
    }
    arguments = ours | {key: value for key, value in usual.items() if key in taken} | dict(options)
    missing = [key for key, option in taken.items() if option.default is option.empty and key not in arguments]
    if missing:
        raise DataError(f"partition 'flwr': {name} needs options: {', '.join(missing)}")
    return arguments


def _library() -> tuple[Any, Any]:
    """Return the class of data sets and the module of partitioners. Raises `DataError` if they are not installed."""
    # Read when it is imported.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with needed(DataError, "partition 'flwr'", "flwr-datasets", "diastole[flwr-datasets]"):
        return import_module("datasets").Dataset, import_module("flwr_datasets.partitioner")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


ROW = PartitionRow(lambda it: deal(it.partitioner, it.options, it.labels, it.users, it.devices, it.seed))
