"""Images kept as JPEG files inside a NumPy archive: a data set in a tenth of the space."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.client.sources.images import Files, pixels
from diastole.experiments.data.held import room
from diastole.experiments.data.reading import Reading


def decode(path: Path, arrays: Mapping[str, NDArray[Any]], reading: Reading) -> dict[str, NDArray[np.uint8]]:
    """Return the images of an archive: `x_train` and `x_test`, uint8 `[n, h, w]` or `[n, h, w, 3]`.

    For each part there are `jpeg_*`, uint8, all files one after another, and `offset_*`, whole numbers
    `[images + 1]`: where each file begins, and where the last one ends. Values may differ by a grey level between
    builds of the JPEG library. Raises `DataError` naming the file, or without Pillow.
    """
    files = {f"x_{part}": _files(path, part, arrays) for part in ("train", "test")}
    return pixels(files, reading.size, partial(room, reading))


def _files(path: Path, part: str, arrays: Mapping[str, NDArray[Any]]) -> Files:
    content, bounds = (arrays.get(f"{what}_{part}", np.empty(0)) for what in ("jpeg", "offset"))
    right = content.dtype == np.uint8 and content.ndim == bounds.ndim == 1 and bounds.dtype.kind in "iu"
    limits = [0, *bounds.tolist(), len(content)] if right else []
    if len(bounds) < 2 or not right or limits != sorted(limits):
        raise DataError(
            f"{path}: jpeg_{part} is {content.dtype} {list(content.shape)} and offset_{part} {bounds.dtype} "
            f"{list(bounds.shape)}; bytes [n], and two or more numbers from 0 to n that never fall, are accepted"
        )
    return [partial(_file, f"{path}: file {k} of jpeg_{part}", content, bounds, k) for k in range(len(bounds) - 1)]


def _file(name: str, content: NDArray[Any], bounds: NDArray[Any], k: int) -> tuple[str, io.BytesIO]:
    return name, io.BytesIO(content[bounds[k] : bounds[k + 1]].tobytes())
