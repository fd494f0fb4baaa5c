"""Tensors in files that several processes map: what the worker engine shares instead of sending."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from diastole.models.state import State

DTYPES = {"float32": torch.float32, "int64": torch.int64}


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
        """Write `values`, float32 or int64, to a new file."""
        slab = Slab(str(path), str(values.dtype).removeprefix("torch."), values.numel())
        path.touch(exist_ok=False)
        slab.map().copy_(values.reshape(-1))
        return slab


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a state stands in a flat slab, in the state's own order."""

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of states with these names and shapes."""
        return Layout(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()))

    @property
    def size(self) -> int:
        """The number of values."""
        return sum(prod(shape) for shape in self.shapes)

    def views(self, flat: Tensor) -> State:
        """Return the state in `flat`, `[>= size]`; its tensors share the slab's memory."""
        views, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            views[name] = flat[start : start + prod(shape)].view(shape)
            start += prod(shape)
        return views

    def write(self, state: Mapping[str, Tensor], flat: Tensor) -> None:
        """Copy `state` into `flat`."""
        for name, view in self.views(flat).items():
            view.copy_(state[name])
