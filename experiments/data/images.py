"""Folders of images: a folder for each class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.data import as_inputs
from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Reading, with_test
from diastole.models.training import Examples

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
ACCEPTED = f"a folder for each class, with images ({', '.join(FORMATS)}) in it; or such folders in train/ and test/"


def load(path: Path, reading: Reading) -> Dataset:
    """Return the images in `path/CLASS/`, or in `path/train/CLASS/` and `path/test/CLASS/`.

    Labels are numbered in the order of the classes' names. Without a folder `test`, a share of each class is drawn for
    it. Images are float32 in [-1, 1], `[n, 1, h, w]` if none has colours, else `[n, 3, h, w]`; they are of one size, or
    scaled to `reading.size`. Raises `DataError` naming the file, or without Pillow.
    """
    train = path / "train" if (path / "train").is_dir() else path
    files = _files(train)
    parts = {train: files}
    if train != path and (path / "test").is_dir():
        parts[path / "test"] = _files(path / "test")
        unknown = sorted(set(parts[path / "test"]) - set(files))
        if unknown:
            raise DataError(f"{path / 'test' / unknown[0]}: no such class in train; {', '.join(files)} are accepted")
    pixels = _pixels([file for part in parts.values() for found in part.values() for file in found], reading.size)
    x = as_inputs(path, "images", pixels)
    place = {name: number for number, name in enumerate(files)}
    y = torch.tensor([place[name] for part in parts.values() for name, found in part.items() for _ in found])
    count = sum(map(len, files.values()))
    if len(parts) == 1:
        return with_test("images", Examples(x, y), len(files), None, reading)
    return Dataset("images", Examples(x[:count], y[:count]), Examples(x[count:], y[count:]), len(files))


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, both in the order of their names."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {each.name: sorted(file for file in each.iterdir() if file.suffix.lower() in FORMATS) for each in classes}
    for name, files in found.items():
        if not files:
            raise DataError(f"{folder / name}: holds no image; {ACCEPTED}, are accepted")
    if not found:
        raise DataError(f"{folder}: holds no folder; {ACCEPTED}, are accepted")
    return found


def _pixels(files: list[Path], size: int) -> NDArray[np.uint8]:
    """Return the images as uint8 `[n, h, w]`, or `[n, h, w, 3]` if one of them has colours."""
    grey, first = True, (size, size)
    for number, file in enumerate(files):
        with _opened(file) as image:
            grey = grey and image.mode in ("1", "L")
            if not size and not number:
                first = image.size
            # Before any pixel is decoded, so that no file can ask for more memory than the first did.
            if not size and image.size != first:
                here, there = ("x".join(map(str, each)) for each in (image.size, first))
                raise DataError(f"{file}: is {here}, and {files[0].name} is {there}; set data.size to scale all images")
    shape = (len(files), first[1], first[0], *(() if grey else (3,)))
    pixels = np.empty(shape, dtype=np.uint8)
    for number, file in enumerate(files):
        with _opened(file) as image:
            drawn = image.convert("L" if grey else "RGB")
            pixels[number] = np.asarray(drawn if drawn.size == first else drawn.resize(first))
    return pixels


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{file}: images need Pillow: pip install diastole[simulation]") from None
    try:
        with Image.open(file, formats=list(set(FORMATS.values()))) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kinds = ", ".join(sorted(set(FORMATS.values())))
        raise DataError(f"{file}: cannot be decoded; images in {kinds} are accepted") from error
