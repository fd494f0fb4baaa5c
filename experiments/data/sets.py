"""Data sets by name: where they come from, and what is accepted."""

import gzip
import logging
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.data import as_inputs, as_whole, read_archive
from diastole.client.errors import DataError
from diastole.experiments.data import cifar, images, jpeg, table
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Layout, Reading, arranged, gaps_in, numbered, numbered_like, with_test
from diastole.models.training import Examples
from diastole.proto.registry import Registry

Arrays = dict[str, NDArray[Any]]

LOG = logging.getLogger(__name__)
MAX_CLASSES = 65_536
KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_UINT8 = 0x08


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of data set, as the registry knows it.

    Attributes:
        load: returns the data set in a file or folder, or one that needs neither, as it is to be read. Raises
            `DataError`.
        what: the file or folder that is accepted; empty for none.

    """

    load: Callable[[Path | None, Reading], Dataset]
    what: str = ""


_HERE = "diastole.experiments.data.sets"
DATASETS: Registry[Source] = Registry(
    "dataset",
    {
        "digits": f"{_HERE}:DIGITS",
        "npz": f"{_HERE}:NPZ",
        "idx": f"{_HERE}:IDX",
        "cifar": f"{_HERE}:CIFAR",
        "images": f"{_HERE}:IMAGES",
        "table": f"{_HERE}:TABLE",
    },
    Source,
    DataError,
)
"""Data sets by name; a package of one's own adds to them by an entry point."""


def load(name: str, path: Path | None, reading: Reading) -> Dataset:
    """Return a data set, images float32 `[n, channels, height, width]` in [-1, 1] and labels int64 `[n]`.

    Accepted, by `name`, are those of installed packages and:

    * "digits": scikit-learn's 1,797 handwritten digits, 8x8; no path. They come without a test part, so a
      share of each class is drawn for it.
    * "npz": a NumPy archive with `x_train`, `y_train`, `x_test`, `y_test` and, if there are natural clients,
      `user_train`. uint8 inputs are images, `[n, h, w]` or `[n, h, w, c]`, and are scaled; other numbers,
      `[n, ...]`, keep their values and their shape. Labels are whole numbers from 0, or words. Images may also be
      kept as JPEG files (`experiments/data/jpeg.py`).
    * "idx": a folder with the four files of MNIST or a set like it, such as EMNIST, plain or gzipped.
    * "cifar": a folder with the python-batch files of CIFAR-10 or CIFAR-100 (fine labels).
    * "images": a folder of images for each class (`experiments/data/images.py`).
    * "table": a CSV or Parquet file, an example in each row (`experiments/data/table.py`).

    Raises:
        DataError: an unknown name, a file that is missing or unreadable, or arrays that are not as above.

    """
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
    if path.is_file():
        return "table" if path.name.endswith(table.KINDS) else "npz"
    entries = list(path.iterdir())
    if any("ubyte" in entry.name for entry in entries):
        return "idx"
    if any(entry.name.startswith(("train.", "test.")) and entry.name.endswith(table.KINDS) for entry in entries):
        return "table"
    return "images" if any(entry.is_dir() for entry in entries) else "cifar"


def _digits(path: Path | None, reading: Reading) -> Dataset:
    library = find_spec("sklearn")
    if library is None or library.origin is None:
        raise DataError("data set 'digits' needs scikit-learn: pip install diastole[simulation]")
    # Its file alone: importing scikit-learn takes twice as long as a round on these examples.
    table = torch.from_numpy(np.loadtxt(Path(library.origin).parent / "datasets/data/digits.csv.gz", delimiter=","))
    examples = Examples(table[:, :-1].float().reshape(-1, 1, 8, 8) / 16 * 2 - 1, table[:, -1].long())
    return with_test("digits", examples, 10, None, reading)


def _npz(path: Path) -> tuple[Arrays, None]:
    arrays = read_archive(path, ", ".join(KEYS))
    if "jpeg_train" in arrays:
        arrays = jpeg.decode(path, arrays)
    for key in KEYS:
        if key not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise DataError(f"{path}: {key} is missing, found {found}; an archive with {', '.join(KEYS)} is accepted")
    return arrays, None


def _idx(folder: Path) -> tuple[Arrays, None]:
    """Read the four files of LeCun et al.'s MNIST (http://yann.lecun.com/exdb/mnist)."""
    return {
        "x_train": _idx_file(folder, "train-images", 3),
        "y_train": _idx_file(folder, "train-labels", 1),
        "x_test": _idx_file(folder, "t10k-images", 3, "test-images"),
        "y_test": _idx_file(folder, "t10k-labels", 1, "test-labels"),
    }, None


def _idx_file(folder: Path, stem: str, dimensions: int, other: str = "") -> NDArray[np.uint8]:
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


def _assemble(name: str, path: Path, arrays: Arrays, classes: int | None, layout: Layout) -> Dataset:
    x_train, x_test = (as_inputs(path, key, arranged(path, key, arrays[key], layout)) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{path}: an example of x_test has the shape {list(x_test.shape[1:])}; "
            f"{list(x_train.shape[1:])}, as in x_train, is accepted"
        )
    if arrays["y_train"].dtype.kind == arrays["y_test"].dtype.kind == "U":
        train, names = numbered(arrays["y_train"])
        test = numbered_like(f"{path}: y_test", arrays["y_test"], names, "y_train")
        arrays = arrays | {"y_train": train, "y_test": test}
    y_train = as_whole(path, "y_train", arrays["y_train"], "x_train", len(x_train), classes or MAX_CLASSES)
    if classes is None:
        classes = int(y_train.max()) + 1
        if line := gaps_in(f"{path}: y_train", y_train, classes):
            LOG.warning(line)
    y_test = as_whole(path, "y_test", arrays["y_test"], "x_test", len(x_test), classes)
    users = None
    if "user_train" in arrays:
        numbers = arrays["user_train"]
        if numbers.dtype.kind == "U":
            numbers, _ = numbered(numbers)
        users = as_whole(path, "user_train", numbers, "x_train", len(x_train), 2**63)
    return Dataset(name, Examples(x_train, y_train), Examples(x_test, y_test), classes, users)


def _read(
    name: str, reader: Callable[[Path], tuple[Arrays, int | None]], path: Path | None, reading: Reading
) -> Dataset:
    return _whole(lambda path, reading: _assemble(name, path, *reader(path), reading.layout), path, reading)


def _whole(reader: Callable[[Path, Reading], Dataset], path: Path | None, reading: Reading) -> Dataset:
    if path is None:
        raise DataError("the data set has no path; a path is needed")
    return reader(path, reading)


DIGITS = Source(_digits)
NPZ = Source(partial(_read, "npz", _npz), "a NumPy archive (.npz)")
IDX = Source(partial(_read, "idx", _idx), "a folder with four idx files")
CIFAR = Source(partial(_read, "cifar", cifar.load), "a folder with python-batch files")
IMAGES = Source(partial(_whole, images.load), images.ACCEPTED)
TABLE = Source(partial(_whole, table.load), table.ACCEPTED)
