"""Data sets by name: where they come from, and what is accepted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diastole.client.errors import DataError
from diastole.client.sources import images as image_files
from diastole.client.sources import table as tables
from diastole.experiments.data import arrays, cifar, digits, hf, images, own, sounds, table
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Reading
from diastole.models.losses import is_own
from diastole.proto.registry import Registry


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of data set, as the registry knows it.

    Attributes:
        load: returns the data set in a file or folder, or one that needs neither, as it is to be read. Raises
            `DataError`.
        what: the file or folder that is accepted; empty for none.

    """

    load: Callable[[Any, Reading], Dataset]
    what: str = ""


DIGITS = Source(digits.load)
NPZ = Source(arrays.npz, "a NumPy archive (.npz)")
NPY = Source(arrays.npy, "a folder with NumPy files (.npy)")
IDX = Source(arrays.of_idx, "a folder with four idx files")
CIFAR = Source(arrays.of_cifar, f"a folder with {cifar.ACCEPTED}")
IMAGES = Source(images.load, image_files.ACCEPTED)
SOUNDS = Source(sounds.load, sounds.ACCEPTED)
TABLE = Source(table.load, table.ACCEPTED)
HF = Source(hf.load, hf.ACCEPTED)

_NAMES = ("digits", "npz", "npy", "idx", "cifar", "images", "sounds", "table", "hf")
DATASETS: Registry[Source] = Registry(
    "dataset", {name: f"diastole.experiments.data.sets:{name.upper()}" for name in _NAMES}, Source, DataError
)
"""Data sets by name; a package of one's own adds to them by an entry point."""


def load(name: str, path: Path | None, reading: Reading) -> Dataset:
    """Return a data set, images float32 `[n, channels, height, width]` in [-1, 1] and labels int64 `[n]`.

    Accepted, by `name`, are those of installed packages and:

    * "digits": scikit-learn's 1,797 handwritten digits, 8x8; no path. They come without a test part, so a
      share of each class is drawn for it.
    * "npz": a NumPy archive with `x_train`, `y_train`, maybe `x_test` and `y_test`, and, if there are natural clients,
      `user_train`. uint8 inputs are images, `[n, h, w]` or `[n, h, w, c]`, and are scaled; other numbers,
      `[n, ...]`, keep their values and their shape. Labels are whole numbers from 0, or words. Images may also be
      kept as JPEG files (`experiments/data/jpeg.py`).
    * "npy": a folder with these arrays as files (.npy), from which inputs are read when they are needed.
    * "idx": a folder with the four files of MNIST or a set like it, such as EMNIST, plain or gzipped.
    * "cifar": a folder with the binary version of CIFAR-10 or CIFAR-100 (fine labels).
    * "images": a folder of images for each class (`experiments/data/images.py`).
    * "sounds": a folder of sounds for each class (`experiments/data/sounds.py`).
    * "table": a CSV or Parquet file, an example in each row (`experiments/data/table.py`).
    * "hf": a folder that Hugging Face's datasets saved (`experiments/data/hf.py`).

    Or "package.module:function", a function of the user's own (`experiments/data/own.py`).

    Raises:
        DataError: an unknown name, a file that is missing or unreadable, or arrays that are not as above.

    """
    if is_own(name):
        return own.load(name, path, reading)
    source = DATASETS[name]
    if path is not None and not source.what:
        raise DataError(f"data set {name!r} comes by itself, found the path {path}; none is accepted")
    if path is None and source.what:
        raise DataError(f"data set {name!r} has no path; the path of {source.what} is accepted")
    if path is not None and not path.exists():
        raise DataError(f"{path}: does not exist; for data set {name!r} the path of {source.what} is accepted")
    return source.load(path, reading)


def kind_of(path: Path) -> str:
    """Return the name of the kind of data set that a file or folder looks like; reading it shows whether it is one."""
    if not path.is_dir():
        return "table" if path.name.endswith(tables.KINDS) else "npz"
    entries = list(path.iterdir())
    names = {entry.name for entry in entries}
    if names & hf.FILES:
        return "hf"
    if any(name.endswith(".npy") for name in names):
        return "npy"
    if any("ubyte" in name for name in names):
        return "idx"
    if any(name.startswith(("train.", "test.")) and name.endswith(tables.KINDS) for name in names):
        return "table"
    if any(entry.is_dir() for entry in entries):
        found = (file.suffix.lower() for entry in entries for file in entry.rglob("*"))
        first = next((kind for kind in found if kind in (*sounds.KINDS, *image_files.FORMATS)), "")
        return "sounds" if first in sounds.KINDS else "images"
    return "cifar"
