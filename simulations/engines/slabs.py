"""Tensors in files that several processes map: what the worker engine shares instead of sending."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from diastole.models.state import State

DTYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.int64, torch.uint8)}
ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Slab:
    """A mapped file holding one flat tensor; `name` is its path, `size` counts values."""

    name: str
    dtype: str
    size: int

    def map(self) -> Tensor:
        """Map the file; every process that does sees the others' writes. Shape `[size]`."""
        return torch.from_file(self.name, shared=True, size=self.size, dtype=DTYPES[self.dtype])

    @staticmethod
    def create(path: Path, values: Tensor) -> "Slab":
        """Write `values`, of one of `DTYPES`, to a new file. Raises `OSError`, if there is no room for example."""
        return Slab.join(path, values.dtype, [values])

    @staticmethod
    def join(path: Path, dtype: torch.dtype, parts: Iterable[Tensor]) -> "Slab":
        """Write tensors of one of `DTYPES` to a new file, one after another. Raises `OSError`."""
        size = 0
        # Not through a map: where there is no room for a page of it, the process would be killed (SIGBUS).
        try:
            with path.open("xb") as file:
                for values in parts:
                    file.write(values.contiguous().numpy().data)
                    size += values.numel()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        return Slab(str(path), _name(dtype), size)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where each tensor of a state stands in a flat slab of bytes, in the state's own order."""

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[str]

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> "StateLayout":
        """Return the layout of states with these names, shapes and dtypes."""
        tensors = state.values()
        return StateLayout(tuple(state), tuple(tuple(t.shape) for t in tensors), tuple(_name(t.dtype) for t in tensors))

    @property
    def size(self) -> int:
        """The number of bytes; each tensor begins at a multiple of `ALIGNMENT`."""
        return sum(_aligned(count) for count in self._bytes())

    def views(self, flat: Tensor) -> State:
        """Return the state in `flat`, uint8 `[>= size]`; its tensors share the slab's memory."""
        views, start = {}, 0
        for name, shape, dtype, count in zip(self.names, self.shapes, self.dtypes, self._bytes(), strict=True):
            views[name] = flat[start : start + count].view(DTYPES[dtype]).view(shape)
            start += _aligned(count)
        return views

    def write(self, state: Mapping[str, Tensor], flat: Tensor) -> None:
        """Copy `state` into `flat`."""
        for name, view in self.views(flat).items():
            view.copy_(state[name])

    def _bytes(self) -> list[int]:
        return [prod(shape) * DTYPES[dtype].itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
