"""Images in files, decoded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diastole.client.errors import DataError
from diastole.proto.missing import needed

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
ACCEPTED = f"a folder for each class, with images ({', '.join(FORMATS)}) in it; or such folders in train/ and test/"

Files = Sequence[Callable[[], tuple[str, Path | IO[bytes]]]]
"""For each image, what gives its name, for errors, and its file."""

Room = Callable[[str, tuple[int, ...], DTypeLike], NDArray[Any]]
"""Returns an array of a name, a shape and a type, to be filled."""


def in_memory(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be filled; its name says nothing here."""
    return np.empty(shape, dtype)


def pixels(files: Mapping[str, Files], size: int, room: Room = in_memory) -> dict[str, NDArray[np.uint8]]:
    """Return images, by the name of their part, as uint8 `[n, h, w]`, or `[n, h, w, 3]` if one of them has colours.

    They are scaled to `size` pixels; 0 leaves them as they are. `room` gives the array that a part is written to.

    Raises `DataError` naming the file, or without Pillow.
    """
    grey, first = True, ""
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
        found[part] = room(part, (len(several), shape[1], shape[0], *(() if grey else (3,))), np.uint8)
        for number, file in enumerate(several):
            with _opened(*file()) as (_, image):
                drawn = image.convert("L" if grey else "RGB")
                found[part][number] = np.asarray(drawn if drawn.size == shape else drawn.resize(shape))
    return found


def named(file: Path) -> tuple[str, Path]:
    """Return the name of an image's file, for errors, and the file."""
    return str(file), file


@contextmanager
def _opened(name: str, file: Path | IO[bytes]) -> Iterator[tuple[str, Any]]:
    with needed(DataError, name, "Pillow", "diastole[simulation]"):
        from PIL import Image
    try:
        with Image.open(file, formats=list(set(FORMATS.values()))) as image:
            yield name, image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kinds = ", ".join(sorted(set(FORMATS.values())))
        raise DataError(f"{name}: cannot be decoded; images in {kinds} are accepted") from error
