"""Data sets of Hugging Face's datasets, in the folder that `save_to_disk` has written."""

import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.errors import DataError
from diastole.client.sources.images import pixels
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import filled, room, whole
from diastole.experiments.data.reading import Reading, numbered
from diastole.experiments.data.targets import Column, targets
from diastole.proto.missing import needed

FILES = {"dataset_dict.json", "state.json"}
ACCEPTED = "a folder that save_to_disk of Hugging Face's datasets has written"
ROWS = 1000
CONTAINERS = ("List", "LargeList", "Sequence", "Array2D", "Array3D", "Array4D", "Array5D")


def load(path: Path, reading: Reading) -> Dataset:
    """Return the examples of a data set, or of the splits `train` and `test` of several.

    The inputs are the column `reading.input`; or else the only one of images, or of lists or arrays of numbers, which
    are of one shape; or else all columns of numbers, x `[n, columns]`. Labels are the column `reading.label`, or else
    the only one with names of classes; users are in `reading.user`, if there is one. Without a split `test`, a share of
    each class is drawn for it. Nothing is downloaded, and no script is run. Raises `DataError` naming the column, or
    without datasets.
    """
    splits = _splits(path)
    train = splits["train"]
    label, users = _label(path, train, reading), None
    columns = _inputs(path, train, reading, label)
    names = ["x"] if len(splits) == 1 else ["x_train", "x_test"]
    arrays = _arrays(path, dict(zip(names, splits.values(), strict=True)), columns, reading)
    y, classes = _targets(path, splits, label, reading)
    if reading.user in train.column_names:
        users = torch.from_numpy(numbered(_column(train, reading.user))[0])
    parts = [filled(reading, path, name, arrays[name], each) for name, each in zip(names, y, strict=True)]
    return whole("hf", parts, classes, users, reading)


def _splits(path: Path) -> dict[str, Any]:
    # Read when it is imported.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    with needed(DataError, str(path), "datasets", "diastole[hf]"):
        import datasets
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 (whatever it says of a file that is broken)
        brief = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(f"{path}: cannot be read ({brief}); {ACCEPTED} is accepted") from None
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if "train" not in splits:
        raise DataError(f"{path}: has the splits {', '.join(splits)[:500]}; train, and maybe test, are accepted")
    return {name: splits[name].with_format(None) for name in ("train", "test") if name in splits}


def _label(path: Path, train: Any, reading: Reading) -> str:
    if reading.label in train.column_names:
        return reading.label
    named = [name for name, feature in train.features.items() if hasattr(feature, "names")]
    if reading.label != "label" or len(named) != 1:
        raise DataError(
            f"{path}: has no column {reading.label!r}; data.label must say which holds the labels, of "
            f"{', '.join(train.column_names)[:500]}"
        )
    return str(named[0])


def _inputs(path: Path, train: Any, reading: Reading, label: str) -> list[str]:
    """Return the columns of inputs."""
    if reading.input:
        if reading.input not in train.column_names:
            raise DataError(
                f"{path}: has no column {reading.input!r}, data.input; there are {', '.join(train.column_names)[:500]}"
            )
        return [reading.input]
    rest = {name: _kind(it) for name, it in train.features.items() if name not in (label, reading.user)}
    found = [name for name, kind in rest.items() if kind == "Image"]
    found = found or [name for name, kind in rest.items() if kind in CONTAINERS]
    if len(found) == 1:
        return found
    if rest and not found and set(rest.values()) == {"number"}:
        return list(rest)
    raise DataError(
        f"{path}: data.input must say which column holds the inputs; there are {', '.join(rest)[:500] or 'no others'}"
    )


def _kind(feature: Any) -> str:
    """Return the kind of a column: "number", or the name of its class."""
    if type(feature).__name__ != "Value":
        return type(feature).__name__
    return "number" if feature.dtype.startswith(("int", "uint", "float", "bool")) else str(feature.dtype)


def _arrays(path: Path, splits: Mapping[str, Any], columns: list[str], reading: Reading) -> dict[str, NDArray[Any]]:
    first = next(iter(splits.values()))
    for name, split in splits.items():
        missing = [column for column in columns if column not in split.column_names]
        if missing:
            raise DataError(f"{path}: {name} has no column {missing[0]!r}; the columns of train are accepted")
    if _kind(first.features[columns[0]]) == "Image":
        from datasets import Image

        files = {
            name: [partial(_file, f"{path}: image {k} of {name}", raw, columns[0], k) for k in range(len(raw))]
            for name, split in splits.items()
            for raw in [split.select_columns(columns).cast_column(columns[0], Image(decode=False))]
        }
        return dict(pixels(files, reading.size, partial(room, reading)))
    found = dict[str, NDArray[Any]]()
    for name, split in splits.items():
        for start in range(0, max(1, len(split)), ROWS):
            rows = split.select_columns(columns).with_format("numpy")[start : start + ROWS]
            part = _numbers(path, columns, [rows[column] for column in columns])
            if not start:
                # Whatever it holds, tokens among them: every width of whole number fits.
                kind = np.int64 if part.dtype.kind in "biu" else np.float32
                found[name] = room(reading, name, (len(split), *part.shape[1:]), kind)
            if part.shape[1:] != found[name].shape[1:]:
                raise _unequal(path, columns)
            found[name][start : start + ROWS] = part
    return found


def _numbers(path: Path, columns: list[str], values: list[Any]) -> NDArray[Any]:
    """Return the values of some rows `[n, ...]`, or `[n, columns]` of several columns."""
    try:
        part = np.array(values[0]) if len(values) == 1 else np.array(values).T
    except ValueError:
        raise _unequal(path, columns) from None
    if part.dtype.kind == "O":
        raise _unequal(path, columns)
    if part.dtype.kind not in "biuf" or not part.size:
        found = f"values of the type {part.dtype}" if part.size else "no values"
        raise DataError(f"{path}: column {columns[0]!r} holds {found}; images and numbers are accepted")
    return part if part.ndim > 1 else part[:, None]


def _unequal(path: Path, columns: list[str]) -> DataError:
    return DataError(
        f"{path}: column {columns[0]!r} holds lists of several lengths; one length, cut or padded, is accepted"
    )


def _file(name: str, split: Any, column: str, k: int) -> tuple[str, Path | io.BytesIO]:
    held = split[k][column] or {}
    return name, io.BytesIO(held["bytes"]) if held.get("bytes") else Path(held.get("path") or "")


def _targets(path: Path, splits: Mapping[str, Any], label: str, reading: Reading) -> tuple[list[Tensor], int]:
    """Return the targets of each split, and the number of classes."""
    columns = []
    for name, split in splits.items():
        if label not in split.column_names:
            raise DataError(f"{path}: {name} has no column {label!r}; the columns of train are accepted")
        columns.append(Column(path, f"column {label!r} of {name}", _column(split, label), name, len(split)))
    named = getattr(splits["train"].features[label], "names", None)
    return targets(columns, reading, len(named) if named else None, renumber=not named)


def _column(split: Any, name: str) -> NDArray[Any]:
    """Return a column; lists of one length become one array."""
    try:
        return np.array(split[name][:])
    except ValueError:
        raise DataError(f"column {name!r} holds lists of several lengths; one length is accepted") from None
