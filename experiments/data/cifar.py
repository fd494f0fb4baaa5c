"""CIFAR-10 and CIFAR-100 in their binary version (Krizhevsky, 2009): plain bytes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError

SHAPE = (3, 32, 32)
ACCEPTED = (
    "the binary version of CIFAR-10 (data_batch_1.bin to data_batch_5.bin, test_batch.bin) or of CIFAR-100 (train.bin, "
    "test.bin)"
)


def load(folder: Path) -> tuple[dict[str, NDArray[Any]], int]:
    """Return `x_train`, `y_train`, `x_test` and `y_test` of the files in `folder`, and the number of classes.

    Images are uint8 `[n, 32, 32, 3]`, labels uint8 `[n]`; of CIFAR-100 they are the fine labels (Krizhevsky, Learning
    Multiple Layers of Features from Tiny Images, 2009). Raises `DataError` for anything else, the python version among
    it: its files are pickles, which run whatever is in them.
    """
    if (folder / "data_batch_1.bin").exists():
        names, test, labels, classes = [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin", 1, 10
    elif (folder / "train.bin").exists():
        names, test, labels, classes = ["train.bin"], "test.bin", 2, 100
    else:
        pickled = any((folder / name).exists() for name in ("data_batch_1", "train"))
        found = (
            "holds the python version, which are pickles" if pickled else "holds neither data_batch_1.bin nor train.bin"
        )
        raise DataError(f"{folder}: {found}; {ACCEPTED} is accepted")
    rows = np.concatenate([_rows(folder / name, labels) for name in names]), _rows(folder / test, labels)
    parts = zip(("train", "test"), rows, strict=True)
    arrays = {f"{key}_{part}": value for part, found in parts for key, value in _split(found, labels).items()}
    return arrays, classes


def _rows(path: Path, labels: int) -> NDArray[np.uint8]:
    """Return the rows of a file: labels, then pixels."""
    size = labels + int(np.prod(SHAPE))
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {ACCEPTED} is accepted") from error
    if not len(content) or len(content) % size:
        raise DataError(f"{path}: is {len(content)} bytes; a multiple of {size}, a row for each image, is accepted")
    return content.reshape(-1, size)


def _split(rows: NDArray[np.uint8], labels: int) -> dict[str, NDArray[np.uint8]]:
    return {"x": rows[:, labels:].reshape(-1, *SHAPE).transpose(0, 2, 3, 1), "y": rows[:, labels - 1]}
