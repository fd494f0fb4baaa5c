"""Data sets by name: where they come from, and what is accepted."""

import gzip
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
from diastole.experiments.data import cifar, jpeg
from diastole.experiments.data.dataset import Dataset, draw_examples, without
from diastole.models.seeds import generator
from diastole.models.training import Examples
from diastole.proto.registry import Registry

Arrays = dict[str, NDArray[Any]]

TEST_SHARE = 0.2
MAX_CLASSES = 65_536
KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_UINT8 = 0x08


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of data set, as the registry knows it.

    Attributes:
        load: returns the data set in a file or folder, or one that needs neither; the seed draws its test part, if it
            comes without one. Raises `DataError`.
        what: the file or folder that is accepted; empty for none.

    """

    load: Callable[[Path | None, int], Dataset]
    what: str = ""


_HERE = "diastole.experiments.data.sets"
DATASETS: Registry[Source] = Registry(
    "dataset",
    {"digits": f"{_HERE}:DIGITS", "npz": f"{_HERE}:NPZ", "idx": f"{_HERE}:IDX", "cifar": f"{_HERE}:CIFAR"},
    Source,
    DataError,
)
"""Data sets by name; a package of one's own adds to them by an entry point."""


def load(name: str, path: Path | None, seed: int) -> Dataset:
    """Return a data set, images float32 `[n, channels, height, width]` in [-1, 1] and labels int64 `[n]`.

    Accepted, by `name`, are those of installed packages and:

    * "digits": scikit-learn's 1,797 handwritten digits, 8x8; no path. They come without a test part, so a
      fifth of each class is drawn for it from `seed`.
    * "npz": a NumPy archive with `x_train`, `y_train`, `x_test`, `y_test` and, if there are natural clients,
      `user_train`. uint8 inputs are images, `[n, h, w]` or `[n, h, w, c]`, and are scaled; floating-point
      inputs, `[n, ...]`, keep their values and their shape. Images may also be kept as JPEG files
      (`experiments/data/jpeg.py`).
    * "idx": a folder with the four files of MNIST or a set like it, plain or gzipped.
    * "cifar": a folder with the python-batch files of CIFAR-10 or CIFAR-100 (fine labels).

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
    return source.load(path, seed)


def _digits(path: Path | None, seed: int) -> Dataset:
    library = find_spec("sklearn")
    if library is None or library.origin is None:
        raise DataError("data set 'digits' needs scikit-learn: pip install diastole[simulation]")
    # Its file alone: importing scikit-learn takes twice as long as a round on these examples.
    table = torch.from_numpy(np.loadtxt(Path(library.origin).parent / "datasets/data/digits.csv.gz", delimiter=","))
    examples = Examples(table[:, :-1].float().reshape(-1, 1, 8, 8) / 16 * 2 - 1, table[:, -1].long())
    size = round(TEST_SHARE * len(examples))
    test = draw_examples(examples.y, size, generator(seed, "digits", "test"), proportional=True)
    train = without(torch.arange(len(examples)), test)
    return Dataset("digits", examples.subset(train), examples.subset(test.sort().values), 10, None)


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
        "x_test": _idx_file(folder, "t10k-images", 3),
        "y_test": _idx_file(folder, "t10k-labels", 1),
    }, None


def _idx_file(folder: Path, stem: str, dimensions: int) -> NDArray[np.uint8]:
    names = [f"{stem}{joint}idx{dimensions}-ubyte{packed}" for joint in ("-", ".") for packed in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
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


def _assemble(name: str, path: Path, arrays: Arrays, classes: int | None) -> Dataset:
    x_train, x_test = (as_inputs(path, key, arrays[key]) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{path}: an example of x_test has the shape {list(x_test.shape[1:])}; "
            f"{list(x_train.shape[1:])}, as in x_train, is accepted"
        )
    y_train = as_whole(path, "y_train", arrays["y_train"], "x_train", len(x_train), classes or MAX_CLASSES)
    classes = classes or int(y_train.max()) + 1
    y_test = as_whole(path, "y_test", arrays["y_test"], "x_test", len(x_test), classes)
    users = None
    if "user_train" in arrays:
        users = as_whole(path, "user_train", arrays["user_train"], "x_train", len(x_train), 2**63)
    return Dataset(name, Examples(x_train, y_train), Examples(x_test, y_test), classes, users)


def _read(name: str, reader: Callable[[Path], tuple[Arrays, int | None]], path: Path | None, seed: int) -> Dataset:
    if path is None:
        raise DataError(f"data set {name!r} has no path")
    return _assemble(name, path, *reader(path))


DIGITS = Source(_digits)
NPZ = Source(partial(_read, "npz", _npz), "a NumPy archive (.npz)")
IDX = Source(partial(_read, "idx", _idx), "a folder with four idx files")
CIFAR = Source(partial(_read, "cifar", cifar.load), "a folder with python-batch files")
