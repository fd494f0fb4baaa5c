"""Data sets of four arrays, `x_train`, `y_train`, `x_test` and `y_test`: in an archive, a folder, or other files."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.data import BROKEN_ARCHIVE, as_inputs, as_whole, read_archive
from diastole.client.errors import DataError
from diastole.client.sources.layout import arranged
from diastole.client.sources.mapped import InputFile, Mapped, opened
from diastole.experiments.data import cifar, idx, jpeg
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import whole
from diastole.experiments.data.reading import Reading, numbered
from diastole.experiments.data.targets import Column, targets
from diastole.models.training import Examples

Arrays = Mapping[str, NDArray[Any]]


def npz(path: Path, reading: Reading) -> Dataset:
    """Return the data set in a NumPy archive. Raises `DataError`."""
    if reading.spool is not None and _unpacked(path, reading.spool):
        return npy(reading.spool, reading)
    arrays = read_archive(path, "x_train, y_train, x_test, y_test")
    if "jpeg_train" in arrays:
        images = jpeg.decode(path, arrays, reading)
        arrays = {key: value for key, value in arrays.items() if not key.startswith(("jpeg_", "offset_"))} | images
    return assemble("npz", path, arrays, None, reading)


def npy(folder: Path, reading: Reading) -> Dataset:
    """Return the data set in a folder of NumPy files, of which the inputs stay there. Raises `DataError`."""
    return assemble("npy", folder, {path.stem: opened(path) for path in sorted(folder.glob("*.npy"))}, None, reading)


def assemble(name: str, path: Path, arrays: Arrays, classes: int | None, reading: Reading) -> Dataset:
    """Return a data set of arrays, which `reading` may name otherwise; those of files (`np.memmap`) are left there.

    Without `x_test` and `y_test`, a share of each class is drawn for the test. Raises `DataError` naming the array.
    """
    inputs, labels, tested = _named(path, arrays, reading)
    x = [_inputs(path, key, arrays[key], reading) for key in inputs]
    shapes = [list((each.whole if isinstance(each, InputFile) else each).shape) for each in x]
    if tested and shapes[0][1:] != shapes[1][1:]:
        raise DataError(
            f"{path}: an example of {inputs[1]} has the shape {shapes[1][1:]}; {shapes[0][1:]}, as in {inputs[0]}, is "
            "accepted"
        )
    columns = [
        Column(path, key, arrays[key], of, shape[0]) for key, of, shape in zip(labels, inputs, shapes, strict=True)
    ]
    y, classes = targets(columns, reading, classes)
    users = _users(path, arrays, reading.user, inputs[0], shapes[0][0])
    parts = [_examples(*each) for each in zip(x, y, strict=True)]
    return whole(name, parts, classes, users, reading)


def _named(path: Path, arrays: Arrays, reading: Reading) -> tuple[list[str], list[str], bool]:
    """Return the names of the arrays of inputs and of labels, and whether there is a test part."""
    x, y = reading.input or "x", "y" if reading.label == "label" else reading.label
    if x in arrays and y in arrays:
        return [x], [y], False
    tested = f"{x}_test" in arrays or f"{y}_test" in arrays
    names = [[f"{key}_{part}" for part in ("train", "test")[: 1 + tested]] for key in (x, y)]
    for key in (name for pair in zip(*names, strict=True) for name in pair):
        if key not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise DataError(
                f"{path}: {key} is missing, found {found}; {x}_train, {y}_train, {x}_test and {y}_test, or names that "
                "data.input and data.label say, are accepted"
            )
    return names[0], names[1], tested


def _inputs(path: Path, key: str, x: NDArray[Any], reading: Reading) -> Tensor | InputFile:
    if isinstance(x, np.memmap):
        return InputFile(str(x.filename), reading.layout)
    return as_inputs(path, key, arranged(path, key, x, reading.layout))


def _examples(x: Tensor | InputFile, y: Tensor) -> Examples:
    return Mapped.of(x, y) if isinstance(x, InputFile) else Examples(x, y)


def _users(path: Path, arrays: Arrays, name: str, of: str, count: int) -> Tensor | None:
    key = next((key for key in (f"{name}_train", name) if key in arrays), None)
    if key is None:
        return None
    values = numbered(arrays[key])[0] if arrays[key].dtype.kind == "U" else arrays[key]
    return as_whole(path, key, values, of, count, 2**63)


def _unpacked(path: Path, folder: Path) -> bool:
    """Copy the arrays of an archive into a folder, without holding them; return whether they are arrays to map."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if (
                any(Path(name).name != name or not name.endswith(".npy") for name in members)
                or "jpeg_train.npy" in members
            ):
                return False
            for name in members:
                with archive.open(name) as member, (folder / name).open("wb") as file:
                    shutil.copyfileobj(member, file, 1 << 20)
    except BROKEN_ARCHIVE as error:
        raise DataError(f"{path}: cannot be read; a NumPy archive (.npz) is accepted") from error
    return True


def of_idx(path: Path, reading: Reading) -> Dataset:
    """Return the data set in a folder of idx files. Raises `DataError`."""
    return assemble("idx", path, idx.load(path), None, reading)


def of_cifar(path: Path, reading: Reading) -> Dataset:
    """Return CIFAR from a folder with its binary version. Raises `DataError`."""
    return assemble("cifar", path, *cifar.load(path), reading)
