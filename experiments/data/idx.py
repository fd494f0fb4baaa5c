"""The four files of LeCun et al.'s MNIST (http://yann.lecun.com/exdb/mnist), and of sets like it."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError

IDX_UINT8 = 0x08


def load(folder: Path) -> dict[str, NDArray[Any]]:
    """Return images, uint8 `[n, h, w]`, and labels, plain or gzipped; names may be EMNIST's. Raises `DataError`."""
    return {
        "x_train": _file(folder, "train-images", 3),
        "y_train": _file(folder, "train-labels", 1),
        "x_test": _file(folder, "t10k-images", 3, "test-images"),
        "y_test": _file(folder, "t10k-labels", 1, "test-labels"),
    }


def _file(folder: Path, stem: str, dimensions: int, other: str = "") -> NDArray[np.uint8]:
    stems = [stem, *filter(None, [other])]
    names = [f"{s}{joint}idx{dimensions}-ubyte{packed}" for s in stems for joint in "-." for packed in ("", ".gz")]
    # EMNIST puts the name of its part in front.
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(tuple(names)))
    path = next((folder / name for name in names if folder / name in found), found[0] if len(found) == 1 else None)
    if path is None and found:
        raise DataError(f"{folder}: holds {', '.join(path.name for path in found)[:300]}; one of them is accepted")
    if path is None:
        raise DataError(f"{folder}: the {stem} file is missing; one of {', '.join(names)} is accepted")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read; a plain or gzipped idx file is accepted") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, IDX_UINT8, dimensions]):
        raise DataError(
            f"{path}: begins with {content[:4].hex() or 'nothing'}; 00000{IDX_UINT8}0{dimensions}, "
            f"an idx file of uint8 in {dimensions} dimensions, is accepted"
        )
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: holds {len(content) - start} values; {math.prod(shape)}, "
            f"for the shape {shape} in its header, is accepted"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
