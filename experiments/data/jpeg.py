"""Images kept as JPEG files inside a NumPy archive: a data set in a tenth of the space."""

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


def decode(path: Path, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return an archive's arrays with `x_train` and `x_test` instead of the JPEG files they are kept as.

    For each part there are `jpeg_*`, uint8, all files one after another, and `offset_*`, whole numbers
    `[images + 1]`: where each file begins, and where the last one ends. Images come out as uint8
    `[n, height, width, 3]`; they are of one size. Values may differ by a grey level between builds of the JPEG library.

    Raises:
        DataError: Pillow is not installed, or the files are not as above. `path` is named.

    """
    kept = {key: value for key, value in arrays.items() if not key.startswith(("jpeg_", "offset_"))}
    return kept | {f"x_{part}": np.stack(_images(path, part, arrays)) for part in ("train", "test")}


def _images(path: Path, part: str, arrays: Arrays) -> list[NDArray[np.uint8]]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: JPEG files need Pillow: pip install diastole[simulation]") from error
    content, bounds = _files(path, part, arrays)
    images: list[NDArray[np.uint8]] = []
    for start, stop in pairwise(bounds):
        file = io.BytesIO(content[start:stop])
        where = f"{path}: file {len(images)} of jpeg_{part}"
        try:
            with Image.open(file, formats=["JPEG"]) as image:
                size = image.size
                # Before its pixels are decoded, so that no file can ask for more memory than the first did.
                if images and size != images[0].shape[1::-1]:
                    first = "x".join(map(str, images[0].shape[1::-1]))
                    raise DataError(f"{where} is {size[0]}x{size[1]}; images of one size, {first}, are accepted")
                images.append(np.asarray(image.convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{where} cannot be decoded; JPEG files are accepted") from error
    return images


def _files(path: Path, part: str, arrays: Arrays) -> tuple[bytes, list[int]]:
    """Return all files of a part as one, and where each begins and the last one ends."""
    for key, kinds, accepted in ((f"jpeg_{part}", "u", "bytes [n]"), (f"offset_{part}", "iu", "whole numbers [n]")):
        values = arrays.get(key)
        if values is None:
            raise DataError(f"{path}: {key} is missing, found {', '.join(arrays)}; {accepted} are accepted")
        if values.dtype.kind not in kinds or values.ndim != 1 or (kinds == "u" and values.dtype != np.uint8):
            raise DataError(f"{path}: {key} is {values.dtype} {list(values.shape)}; {accepted} are accepted")
    content, bounds = arrays[f"jpeg_{part}"].tobytes(), arrays[f"offset_{part}"].tolist()
    if len(bounds) < 2 or bounds[0] < 0 or bounds[-1] > len(content) or bounds != sorted(bounds):
        raise DataError(
            f"{path}: offset_{part} holds {len(bounds)} numbers; two or more, from 0 up to {len(content)} "
            "and never falling, are accepted"
        )
    return content, bounds
