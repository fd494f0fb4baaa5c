"""Where the channels of images and series are."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diastole.client.data import MAX_CHANNELS
from diastole.client.errors import DataError

Layout = Literal["", "channels-first", "channels-last", "grey"]


def arranged(path: Path, key: str, x: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Return images as `client.data.as_inputs` takes them: uint8 with the channels last, others with them first.

    Raises `DataError` for what could be read in two ways if `layout` does not say which is meant.
    """
    found, pixels = f"{path}: {key} is {x.dtype} {list(x.shape)}", x.dtype == np.uint8
    if not layout:
        if x.dtype.kind == "f" and x.ndim == 4 and x.shape[3] <= MAX_CHANNELS < min(x.shape[1:3]):
            raise DataError(
                f'{found}; data.layout must say where the channels are: "channels-last" or "channels-first"'
            )
        if x.dtype.kind == "f" and x.ndim == 3 and x.shape[1] == x.shape[2]:
            raise DataError(
                f'{found}; data.layout must say what this is: "grey" images, or series with "channels-first" or '
                '"channels-last"'
            )
        return x
    if x.ndim != (3 if layout == "grey" else 4) and (pixels or layout == "grey" or x.ndim != 3):
        axes = "three axes are" if layout == "grey" else "four axes, or series of three, are"
        raise DataError(f"{found}; with data.layout {layout!r}, images of {axes} accepted")
    if layout == "grey":
        return x if pixels else x[:, None]
    wanted = "channels-last" if pixels else "channels-first"
    return x if layout == wanted else np.moveaxis(x, 1, -1) if pixels else np.moveaxis(x, -1, 1)
