"""Inputs that stay in their files: data larger than memory, of which every process maps the same pages."""

import warnings
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diastole.client.data import BROKEN_ARCHIVE, as_inputs, channels_first
from diastole.client.errors import DataError
from diastole.client.sources.layout import Layout, arranged
from diastole.models.training import Examples


@dataclass(frozen=True)
class InputFile:
    """The inputs of all examples in a NumPy file (.npy), which is read where it is asked for.

    Attributes:
        path: of the file.
        layout: where the channels are, if that could be read in two ways.
        tokens: whether models take the inputs as int64, not as float32.

    """

    path: str
    layout: Layout = ""
    tokens: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without what was read: it may be larger than memory."""
        return asdict(self)

    @cached_property
    def array(self) -> NDArray[Any]:
        """The file as it is, `[n, ...]`. Raises `DataError` if it is no array."""
        return opened(Path(self.path))

    @cached_property
    def whole(self) -> Tensor:
        """The file as a tensor, channels first, which nobody may write to: `[n, ...]`, bytes as bytes."""
        self._as_inputs(self.array[:1])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return torch.from_numpy(channels_first(*self._arranged(self.array)))
        except (TypeError, ValueError):
            raise DataError(
                f"{self.path}: is {self.array.dtype.str} {list(self.array.shape)}; numbers in this machine's order of "
                "bytes are accepted"
            ) from None

    def take(self, index: NDArray[Any] | slice) -> Tensor:
        """Return a copy of the inputs at `index` as models take them. Raises `DataError`."""
        part = self.array[index]
        return self._as_inputs(part) if len(part) else self.whole[:0].to(torch.int64 if self.tokens else torch.float32)

    def _as_inputs(self, part: NDArray[Any]) -> Tensor:
        inputs = as_inputs(*self._arranged(part))
        return inputs.long() if self.tokens else inputs

    def _arranged(self, part: NDArray[Any]) -> tuple[Path, str, NDArray[Any]]:
        path = Path(self.path)
        return path, path.stem, arranged(path, path.stem, part, self.layout)


@dataclass(frozen=True, slots=True)
class Mapped(Examples):
    """Examples whose inputs are in a file, `x`; `subset` and `part` give copies of them, as models take them."""

    file: InputFile

    @staticmethod
    def of(file: InputFile, y: Tensor) -> "Mapped":
        """Return the examples in a file, with labels `[n]`. Raises `DataError`."""
        return Mapped(file.whole, y, file)

    def subset(self, index: Tensor) -> Examples:
        """Return the examples at `index`, int64 `[m]`."""
        return Examples(self.file.take(index.numpy()), self.y[index])

    def to(self, dtype: torch.dtype) -> "Mapped":
        """Return the same examples, with inputs of a type."""
        return replace(self, file=replace(self.file, tokens=dtype == torch.int64))

    def part(self, start: int, stop: int) -> Examples:
        """Return the examples from `start` to before `stop`."""
        return Examples(self.file.take(slice(start, stop)), self.y[start:stop])


def opened(path: Path) -> NDArray[Any]:
    """Return an array in a file (.npy), mapped; nothing in it is unpickled. Raises `DataError`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARCHIVE as error:
        raise DataError(f"{path}: cannot be read; a NumPy array (.npy) of numbers is accepted") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is an archive; a NumPy array (.npy) is accepted")
    return array
