"""A data set as one NumPy archive, or as a folder of arrays that may be larger than memory."""

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diastole.client.data import MAX_CHANNELS, as_inputs
from diastole.client.errors import DataError
from diastole.client.sources.mapped import Mapped
from diastole.experiments.data.dataset import Dataset
from diastole.models.training import Examples
from diastole.proto.files import write_bytes


def pack(load: Callable[[Path | None], Dataset], out: Path) -> Dataset:
    """Write a data set so that reading it gives the same values, labels and users, and return it.

    Images that were made of bytes become bytes again, a quarter of the space.

    Args:
        load: reads the data set; where it can, it keeps inputs in files of the folder that it is given.
        out: an archive (.npz), which is made in memory and replaces an earlier one at once; or a folder that is new or
            empty, for which inputs go from file to file.

    Raises `DataError` for a folder that holds anything.

    """
    if out.suffix == ".npz":
        dataset, archive = load(None), io.BytesIO()
        np.savez_compressed(archive, **arrays_of(dataset))
        write_bytes(out, archive.getvalue())
        return dataset
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is there already; an archive (.npz), or a folder that is new or empty, is accepted")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        spool, whole = Path(place) / "spool", Path(place) / "whole"
        spool.mkdir()
        whole.mkdir()
        dataset = load(spool)
        for name, array in arrays_of(dataset).items():
            np.save(whole / f"{name}.npy", array)
        whole.replace(out)
    return dataset


def arrays_of(dataset: Dataset) -> dict[str, Any]:
    """Return the arrays that a data set is packed as; those in files are not read."""
    arrays: dict[str, Any] = {"x_train": _kept(dataset.train), "x_test": _kept(dataset.test)}
    if len({array.dtype for array in arrays.values()}) > 1:
        arrays = {"x_train": dataset.train.x.numpy(), "x_test": dataset.test.x.numpy()}
    arrays |= {"y_train": dataset.train.y.numpy(), "y_test": dataset.test.y.numpy()}
    return arrays if dataset.users is None else arrays | {"user_train": dataset.users.numpy()}


def _kept(examples: Examples) -> NDArray[np.generic]:
    """Return images as uint8 `[n, h, w, c]` if reading these gives them to the bit, or else as they are."""
    x = examples.x
    if x.dtype == torch.uint8:
        x = x.permute(0, 2, 3, 1)
    values: NDArray[np.generic] = x.numpy()
    if isinstance(examples, Mapped) or x.dim() != 4 or x.shape[1] > MAX_CHANNELS or x.abs().max() > 1:
        return values
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels if torch.equal(as_inputs(Path(), "x", pixels), x) else values
