"""Folders of images: a folder for each class."""

from functools import partial
from pathlib import Path

from diastole.client.sources.classes import Folder
from diastole.client.sources.images import ACCEPTED, FORMATS, named, pixels
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import filled, room, whole
from diastole.experiments.data.reading import Reading


def load(path: Path, reading: Reading) -> Dataset:
    """Return the images in `path/CLASS/`, or in `path/train/CLASS/` and `path/test/CLASS/`.

    Labels are numbered in the order of the classes' names. Without a folder `test`, a share of each class is drawn for
    it. Images are float32 in [-1, 1], `[n, 1, h, w]` if none has colours, else `[n, 3, h, w]`; they are of one size, or
    scaled to `reading.size`. Raises `DataError` naming the file, or without Pillow.
    """
    folder = Folder.read(path, FORMATS, ACCEPTED)
    files = {name: [partial(named, file) for file in part] for name, part in folder.parts.items()}
    arrays = pixels(files, reading.size, partial(room, reading))
    parts = [filled(reading, path, name, x, y) for (name, x), y in zip(arrays.items(), folder.labels, strict=True)]
    return whole("images", parts, folder.classes, None, reading)
