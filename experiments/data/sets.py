"""Data sets: where they come from, what is accepted, and the server's own labelled part."""

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.data import as_inputs, as_whole, read_archive
from diastole.client.errors import DataError
from diastole.experiments.data import cifar, jpeg
from diastole.models.seeds import generator
from diastole.models.training import Examples

Arrays = dict[str, NDArray[Any]]

TEST_SHARE = 0.2
MAX_CLASSES = 65_536
KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_UINT8 = 0x08


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples to train on and to test on.

    Attributes:
        name: what `load` was asked for.
        train: the examples that devices and the proxy set are made of.
        test: examples that nothing is trained or selected on.
        classes: labels run from 0 to `classes - 1`.
        users: int64 `[n_train]`, the natural client of each training example, or None if there are none.

    """

    name: str
    train: Examples
    test: Examples
    classes: int
    users: Tensor | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example, `[channels, height, width]` for images."""
        return tuple(self.train.x.shape[1:])


def load(name: str, path: Path | None, seed: int) -> Dataset:
    """Return a data set, images float32 `[n, channels, height, width]` in [-1, 1] and labels int64 `[n]`.

    Accepted, by `name`:

    * "digits": scikit-learn's 1,797 handwritten digits, 8x8; no path. They come without a test part, so a
      fifth of each class is drawn for it from `seed`.
    * "npz": a NumPy archive with `x_train`, `y_train`, `x_test`, `y_test` and, if there are natural clients,
      `user_train`. uint8 inputs are images, `[n, h, w]` or `[n, h, w, c]`, and are scaled; floating-point
      inputs, `[n, ...]`, keep their values and their shape. Images may also be kept as JPEG files
      (`simulations.jpeg`).
    * "idx": a folder with the four files of MNIST or a set like it, plain or gzipped.
    * "cifar": a folder with the python-batch files of CIFAR-10 or CIFAR-100 (fine labels).

    Raises:
        DataError: an unknown name, a file that is missing or unreadable, or arrays that are not as above.

    """
    if name == "digits":
        if path is not None:
            raise DataError(f"data set 'digits' comes with scikit-learn, found the path {path}; none is accepted")
        return _digits(seed)
    if name not in READERS:
        raise DataError(f"unknown data set {name!r}; accepted: digits, {', '.join(READERS)}")
    reader, what = READERS[name]
    if path is None:
        raise DataError(f"data set {name!r} has no path; the path of {what} is accepted")
    if not path.exists():
        raise DataError(f"{path}: does not exist; for data set {name!r} the path of {what} is accepted")
    arrays, classes = reader(path)
    return _assemble(name, path, arrays, classes)


def split_proxy(dataset: Dataset, size: int, seed: int, validation: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Take the server's own labelled set out of the training examples.

    Args:
        dataset: whose training examples are split.
        size: examples the server gets, at most half of all; as many of each class as of every other, as far
            as the classes reach.
        seed: of the run.
        validation: the share of `size`, between 0 and 1, that is for selection only; at least one example
            when `size` is 2 or more, and never all of them.

    Returns:
        Sorted int64 indices into `dataset.train`: for the server to train on, for it to select by, and what
        is left for devices. They are disjoint and cover every example.

    Raises:
        DataError: `size` or `validation` is out of range.

    """
    labels = dataset.train.y
    if not 0 <= size <= len(labels) // 2:
        raise DataError(
            f"proxy size is {size}; 0 to {len(labels) // 2}, half of the training examples of "
            f"{dataset.name!r}, is accepted"
        )
    if not 0 < validation < 1:
        raise DataError(f"proxy validation share is {validation}; a number between 0 and 1 is accepted")
    draws = generator(seed, "proxy")
    proxy = _draw(labels, size, draws, proportional=False)
    held_out = min(max(round(size * validation), 1), size - 1) if size >= 2 else 0
    selection = proxy[_draw(labels[proxy], held_out, draws, proportional=True)]
    return _without(proxy, selection), selection.sort().values, _without(torch.arange(len(labels)), proxy)


def _draw(labels: Tensor, size: int, draws: torch.Generator, *, proportional: bool) -> Tensor:
    """Return `size` indices: equally many of each class, or as many as its share.

    Every example gets a place in the queue of its class, and whoever stands nearest the front is taken, ties
    at random. Measuring the place as a share of the queue is Sainte-Laguë apportionment.
    """
    order = torch.randperm(len(labels), generator=draws)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        queue = (labels[order] == label).nonzero().squeeze(1)
        place[queue] = torch.arange(len(queue), dtype=torch.float64) + 0.5
        if proportional:
            place[queue] /= len(queue)
    return order[place.argsort(stable=True)[:size]]


def _without(index: Tensor, taken: Tensor) -> Tensor:
    return index[~torch.isin(index, taken)].sort().values


def _digits(seed: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data set 'digits' needs scikit-learn: pip install diastole[simulation]") from error
    bundle = load_digits()
    pixels = torch.from_numpy(bundle.images).float().unsqueeze(1)
    examples = Examples(pixels / 16 * 2 - 1, torch.from_numpy(bundle.target).long())
    size = round(TEST_SHARE * len(examples))
    test = _draw(examples.y, size, generator(seed, "digits", "test"), proportional=True)
    train = _without(torch.arange(len(examples)), test)
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


READERS: dict[str, tuple[Callable[[Path], tuple[Arrays, int | None]], str]] = {
    "npz": (_npz, "a NumPy archive (.npz)"),
    "idx": (_idx, "a folder with four idx files"),
    "cifar": (cifar.load, "a folder with python-batch files"),
}


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
