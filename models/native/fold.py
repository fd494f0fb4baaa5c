"""The exact accumulator's inner loop in C++; `models/accumulator.py` has it in PyTorch, to the same bits.

Where it wins: one pass over the sums, and over the values, instead of twelve over scratch memory. Folding updates of a
ResNet-18 it takes in four to five times as many bytes a second. Where it does not run: scattered coordinates, and terms
of 2^31 and more.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from diastole.models.coordinates import Block
from diastole.models.errors import KernelError
from diastole.models.native import library
from diastole.models.native.library import INT64, POINTER

PART = "fold"
"""Of the native kernels."""

MOST = 2.0**51
"""Terms must be below this, in units of the coarse sum."""

_Wholes = ctypes.Array[ctypes.c_int64]

_ARGUMENTS = (POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INT64, ctypes.c_double, ctypes.c_float, INT64)


def takes(values: Tensor, reference: Tensor) -> bool:
    """Return whether `add` can do its work: on float32, in plain memory, with the kernel loaded."""
    return (
        values.dtype == reference.dtype == torch.float32
        and values.is_cpu
        and reference.is_cpu
        and reference.is_contiguous()
        and library.loaded(PART) is not None
    )


def add(
    coarse: Tensor,
    fine: Tensor,
    reference: Tensor,
    values: Tensor,
    block: Block,
    scale: float,
    limit: float,
    *,
    undo: bool = False,
) -> bool:
    """Add `(values - reference) * scale` to `coarse`, and what that leaves, times 2^40, to `fine`, in one block.

    All but `values` are contiguous tensors of one shape, int64, int64 and float32; `values` are those of the block.
    Return whether no value is above `limit`. The sums are wrong unless every `|(values - reference) * scale|` is below
    `MOST`; whatever was added, the same call with `undo` takes away again, because whole numbers wrap round.
    """
    values = values.contiguous()
    at, axes, sizes, strides = _layout(reference.shape, block)
    near = _fold()(
        coarse.data_ptr() + 8 * at,
        fine.data_ptr() + 8 * at,
        reference.data_ptr() + 4 * at,
        values.data_ptr(),
        sizes,
        strides,
        axes,
        scale,
        limit,
        undo,
    )
    return near == 0


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], block: Block) -> tuple[int, int, _Wholes, _Wholes]:
    """Return where a block begins in a contiguous tensor, and its axes, their sizes and their strides."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    at = sum(start * stride for (start, _), stride in zip(block, strides, strict=True))
    sizes, strides = [1, *(stop - start for start, stop in block)], [0, *strides]
    # Axes that lie behind one another are one, so that the innermost loop is long.
    while len(sizes) > 1 and strides[-2] == sizes[-1] * strides[-1]:
        sizes[-2:], strides[-2:] = [sizes[-2] * sizes[-1]], [strides[-1]]
    if strides[-1] != 1:
        sizes, strides = [*sizes, 1], [*strides, 1]
    array = ctypes.c_int64 * len(sizes)
    return at, len(sizes), array(*sizes), array(*strides)


@cache
def _fold() -> Callable[..., int]:
    """Return the kernel; found once, because every tensor of every update asks for it."""
    fold = library.function(PART, "diastole_fold", *_ARGUMENTS)
    if fold is None:
        raise KernelError("no fold: its kernel is absent")
    return fold
