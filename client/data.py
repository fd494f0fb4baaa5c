"""The examples a device trains on, from an archive of its own."""

import fcntl
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.errors import DataError
from diastole.models.losses import IGNORED
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples

MAX_CHANNELS = 4
MOST_WHOLE = 1 << 24
"""Up to here a float32 holds every whole number."""
PICKLED = (".pt", ".pth", ".pkl", ".pickle")
BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load(path: Path) -> Examples:
    """Return the examples in a NumPy archive with the keys `x` and `y`, or `x_train` and `y_train`.

    uint8 inputs are images, `[n, h, w]` or `[n, h, w, c]`, and are scaled to [-1, 1]; other numbers, `[n, ...]`, keep
    their values and their shape. Targets are whole numbers or values, `[n, ...]`. Raises `DataError`.
    """
    arrays = read_archive(path, "x and y, or x_train and y_train,")
    keys = names_in(path, arrays, "an archive")
    x = as_inputs(path, keys[0], arrays[keys[0]])
    return Examples(x, as_targets(path, keys[1], arrays[keys[1]], keys[0], len(x), 2**31))


def names_in(path: Path, names: Iterable[str], what: str) -> tuple[str, str]:
    """Return the names of the inputs and of the targets among those of arrays. Raises `DataError`."""
    found = list(names)
    for pair in (("x", "y"), ("x_train", "y_train")):
        if set(pair) <= set(found):
            return pair
    told = ", ".join(found) or "nothing"
    raise DataError(f"{path}: found {told}; {what} with x and y, or x_train and y_train, is accepted")


def load_inputs(path: Path) -> tuple[Tensor, Tensor | None]:
    """Return the inputs in a NumPy archive, as `load` does, and the targets if there are any. Raises `DataError`."""
    arrays = read_archive(path, "x")
    if "x" in arrays and "y" not in arrays:
        return as_inputs(path, "x", arrays["x"]), None
    found = load(path)
    return found.x, found.y


@contextmanager
def claim(path: Path) -> Iterator[Path]:
    """Yield the archive to train on: `path` itself, or of a folder the first one no other process has claimed.

    The claim ends with the block, or with the process. Raises `DataError` if the folder has none left.
    """
    if not path.is_dir():
        yield path
        return
    archives = sorted(path.glob("*.npz"))
    for archive in archives:
        with archive.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield archive
            return
    raise DataError(f"{path}: all of its {len(archives)} archives (.npz) are taken; one that is free is needed")


def save(path: Path, examples: Examples) -> None:
    """Write examples unchanged, in the form that `load` reads."""
    with path.open("wb") as file:
        np.savez_compressed(file, x=examples.x.numpy(), y=examples.y.numpy())


def read_archive(path: Path, keys: str) -> dict[str, NDArray[Any]]:
    """Return every array of a NumPy archive; nothing in it is unpickled. Raises `DataError`, naming `keys`."""
    accepted = f"a NumPy archive (.npz) with {keys} is accepted"
    if not path.is_file():
        raise DataError(f"{path}: no such file; {accepted}")
    if path.suffix in PICKLED:
        raise DataError(
            f"{path}: is a pickle, which may run anything and is not read; save its arrays with numpy.savez: {accepted}"
        )
    try:
        archive = np.load(path, allow_pickle=False)
    except BROKEN_ARCHIVE as error:
        raise DataError(f"{path}: cannot be read as an archive; {accepted}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: holds a single array; {accepted}")
    arrays: dict[str, NDArray[Any]] = {}
    with archive:
        for key in archive.files:
            try:
                arrays[key] = archive[key]
            except BROKEN_ARCHIVE as error:
                raise DataError(f"{path}: {key} cannot be read; an undamaged array of numbers is accepted") from error
    return arrays


def as_inputs(path: Path, key: str, x: NDArray[Any]) -> Tensor:
    """Return examples as float32, channels first and in [-1, 1] if they are uint8 images. Raises `DataError`.

    Whole numbers of another type, such as tokens, keep their values.
    """
    found = f"{path}: {key} is {x.dtype} {list(x.shape)}"
    if 0 in x.shape:
        raise DataError(f"{found}; at least one example with at least one value is accepted")
    x = channels_first(path, key, x)
    if x.dtype == np.uint8:
        scaled = x.astype(np.float32, order="C")
        # In place: CIFAR takes 600 MB as float32, and a second copy would not fit everywhere.
        scaled /= 255
        scaled *= 2
        scaled -= 1
        return torch.from_numpy(scaled)
    if x.dtype.kind not in "fiu" or x.ndim < 2:
        raise DataError(f"{found}; uint8 images, or numbers [n, ...] of another type, are accepted")
    if x.dtype.kind != "f" and (largest := max(abs(int(x.min())), abs(int(x.max())))) > MOST_WHOLE:
        raise DataError(f"{found} and holds {largest}; whole numbers of at most {MOST_WHOLE} are accepted")
    with np.errstate(over="ignore"):
        values = x.astype(np.float32, order="C")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {key} holds a value that is not finite; finite float32 values are accepted")
    return torch.from_numpy(values)


def channels_first(path: Path, key: str, x: NDArray[Any]) -> NDArray[Any]:
    """Return images of bytes, `[n, h, w]` or `[n, h, w, c]`, as `[n, c, h, w]`, and anything else as it is.

    Nothing is copied. Raises `DataError`.
    """
    if x.dtype != np.uint8:
        return x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] <= MAX_CHANNELS:
        return x.transpose(0, 3, 1, 2)
    raise DataError(
        f"{path}: {key} is uint8 {list(x.shape)}; uint8 images [n, height, width] or [n, height, width, channels] with "
        f"at most {MAX_CHANNELS} channels are accepted"
    )


def as_whole(path: Path, key: str, values: NDArray[Any], of: str, count: int, limit: int) -> Tensor:
    """Return `values` as int64 if they are `count` whole numbers from 0 to below `limit`; else raise `DataError`."""
    if values.dtype.kind not in "biu" or values.shape != (count,):
        raise DataError(
            f"{path}: {key} is {values.dtype} {list(values.shape)}; whole numbers [{count}], "
            f"one for each example of {of}, are accepted"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise DataError(f"{path}: {key} holds {wrong}; whole numbers from 0 to {limit - 1} are accepted")
    return torch.from_numpy(values.astype(np.int64))


def as_targets(path: Path, key: str, values: NDArray[Any], of: str, count: int, limit: int) -> Tensor:
    """Return targets `[count, ...]`: whole numbers from 0 to below `limit` as int64, other values as float32.

    A column of whole numbers is `[count]`. Where an example has several, `losses.IGNORED` stands for none. Raises
    `DataError`.
    """
    if values.shape == (count, 1) and values.dtype.kind in "biu":
        values = values[:, 0]
    if values.ndim < 2 and values.dtype.kind != "f":
        return as_whole(path, key, values, of, count, limit)
    found = f"{path}: {key} is {values.dtype} {list(values.shape)}"
    if values.dtype.kind not in "biuf" or len(values) != count or 0 in values.shape:
        raise DataError(
            f"{found}; whole numbers or values [{count}, ...], one or more for each example of {of}, are accepted"
        )
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            targets = values.astype(np.float32)
        if not np.isfinite(targets).all():
            raise DataError(f"{path}: {key} holds a value that is not finite; finite float32 values are accepted")
        return torch.from_numpy(targets)
    counted = values[values != IGNORED]
    if counted.size and (int(counted.min()) < 0 or int(counted.max()) >= limit):
        wrong = int(counted.min()) if int(counted.min()) < 0 else int(counted.max())
        raise DataError(f"{path}: {key} holds {wrong}; whole numbers from 0 to {limit - 1}, or {IGNORED}, are accepted")
    return torch.from_numpy(values.astype(np.int64))


def check_tokens(what: str, x: Tensor, model: ModelConfig) -> None:
    """Raise `DataError`, naming `what`, if a model with a vocabulary does not know a token of `x`, `[n, ...]`."""
    if not model.vocabulary:
        return
    wrong = x[(x < 0) | (x >= model.vocabulary) | (x != x.long())]
    if len(wrong):
        raise DataError(
            f"{what}: a token is {float(wrong[0]):g}; whole numbers from 0 to {model.vocabulary - 1}, the model's "
            "vocabulary, are accepted"
        )
