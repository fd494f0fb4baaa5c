"""Folders of images: a folder for each class."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.experiments.data.classes import Folder
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import filled, room, whole
from diastole.experiments.data.reading import Reading

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
ACCEPTED = f"a folder for each class, with images ({', '.join(FORMATS)}) in it; or such folders in train/ and test/"

Files = Sequence[Callable[[], tuple[str, Path | IO[bytes]]]]
"""For each image, what gives its name, for errors, and its file."""


def load(path: Path, reading: Reading) -> Dataset:
    """Return the images in `path/CLASS/`, or in `path/train/CLASS/` and `path/test/CLASS/`.

    Labels are numbered in the order of the classes' names. Without a folder `test`, a share of each class is drawn for
    it. Images are float32 in [-1, 1], `[n, 1, h, w]` if none has colours, else `[n, 3, h, w]`; they are of one size, or
    scaled to `reading.size`. Raises `DataError` naming the file, or without Pillow.
    """
    folder = Folder.read(path, FORMATS, ACCEPTED)
    arrays = pixels({name: [partial(_named, file) for file in files] for name, files in folder.parts.items()}, reading)
    parts = [filled(reading, path, name, x, y) for (name, x), y in zip(arrays.items(), folder.labels, strict=True)]
    return whole("images", parts, folder.classes, None, reading)


def pixels(files: Mapping[str, Files], reading: Reading) -> dict[str, NDArray[np.uint8]]:
    """Return images, by the name of their part, as uint8 `[n, h, w]`, or `[n, h, w, 3]` if one of them has colours.

    Raises `DataError` naming the file, or without Pillow.
    """
    size, grey, first = reading.size, True, ""
    shape = (size, size)
    for file in (file for part in files.values() for file in part):
        with _opened(*file()) as (name, image):
            grey = grey and image.mode in ("1", "L")
            if not first:
                first, shape = name, shape if size else image.size
            # Before any pixel is decoded, so that no file can ask for more memory than the first did.
            if not size and image.size != shape:
                here, there = ("x".join(map(str, each)) for each in (image.size, shape))
                raise DataError(
                    f"{name}: is {here}, and {Path(first).name} is {there}; set data.size to scale all images"
                )
    found = dict[str, NDArray[np.uint8]]()
    for part, several in files.items():
        found[part] = room(reading, part, (len(several), shape[1], shape[0], *(() if grey else (3,))), np.uint8)
        for number, file in enumerate(several):
            with _opened(*file()) as (_, image):
                drawn = image.convert("L" if grey else "RGB")
                found[part][number] = np.asarray(drawn if drawn.size == shape else drawn.resize(shape))
    return found


def _named(file: Path) -> tuple[str, Path]:
    return str(file), file


@contextmanager
def _opened(name: str, file: Path | IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{name}: images need Pillow: pip install diastole[simulation]") from None
    try:
        with Image.open(file, formats=list(set(FORMATS.values()))) as image:
            yield name, image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kinds = ", ".join(sorted(set(FORMATS.values())))
        raise DataError(f"{name}: cannot be decoded; images in {kinds} are accepted") from error
