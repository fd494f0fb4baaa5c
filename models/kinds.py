"""What kinds of work a training step is made of, so that a device can say how fast it is at each."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diastole.models.training import TrainConfig

KINDS = {
    "dense": "multiply-accumulates of convolutions of images, channels rounded up to multiples of 8",
    "pointwise": "multiply-accumulates of convolutions of one tap, likewise",
    "sequence": "multiply-accumulates of other convolutions along one axis, likewise",
    "ragged": "multiply-accumulates that rounding up to multiples of 16 adds to them",
    "depthwise3": "multiply-accumulates of convolutions in groups, 9 taps or fewer",
    "depthwise5": "multiply-accumulates of convolutions in groups, 10 to 25 taps",
    "depthwise7": "multiply-accumulates of convolutions in groups, more than 25 taps",
    "matrix": "multiply-accumulates of matrix products, attention and recurrent layers",
    "memory": "bytes that operators read and write",
    "pooling": "bytes that pooling reads and writes, once more",
    "exponential": "bytes that softmax and GELU read and write, once more",
    "convolutions": "calls of a convolution or of its gradients",
    "calls": "calls of any other operator",
    "steps": "steps, each with what Python does in it",
}
"""The kinds of work by name, each with its unit."""

PER_CALL = frozenset({"convolutions", "calls", "steps"})
"""The kinds of which a batch has as many as a smaller one."""

FIRST = 3
"""Up to this number of input channels, as of images, libraries have kernels that do not round them up."""

_aten: Any = torch.ops.aten
_EXPONENTIAL = frozenset((_aten.gelu, _aten.gelu_backward, _aten._softmax, _aten._softmax_backward_data))
_PASSES = {"sgd": 2, "adam": 13}

Work = Mapping[str, float]
"""How much there is of each kind of work, in the units of `KINDS`; a kind that is missing has none."""


def operator_work(func: Any, args: Sequence[Any], result: Any, macs: float) -> Iterator[tuple[str, float]]:
    """Yield the work of one operator, kind by kind; of one that gives a mere view, none.

    Args:
        func: the operator.
        args: its positional arguments.
        result: what it gave.
        macs: its multiply-accumulates.

    """
    if func.is_view:
        return
    moved = _bytes(args) + _bytes(result)
    yield "memory", moved
    packet = func.overloadpacket
    if packet is _aten.convolution:
        yield "convolutions", 1.0
        yield from _convolution(args[1].shape, args[8], macs)
        return
    if packet is _aten.convolution_backward:
        yield "convolutions", 1.0
        yield from _convolution(args[2].shape, args[9], macs)
        return
    yield "calls", 1.0
    if macs:
        yield "matrix", macs
    elif "pool" in packet.__name__:
        yield "pooling", moved
    elif packet in _EXPONENTIAL:
        yield "exponential", moved


def _bytes(tensors: Any) -> float:
    """Return the bytes of a tensor, or of the tensors among values; anything else has none."""
    # Not torch's walk through trees, which would take longer than many an operator does.
    if isinstance(tensors, Tensor):
        return float(tensors.numel() * tensors.element_size())
    return sum(map(_bytes, tensors)) if isinstance(tensors, tuple | list) else 0.0


def _convolution(weight: Sequence[int], groups: int, macs: float) -> Iterator[tuple[str, float]]:
    """Yield the arithmetic of a convolution or a gradient of one, whose weight is `[out, in / groups, ...]`."""
    out, inside, taps = weight[0], weight[1], prod(weight[2:])
    if groups > 1:
        yield f"depthwise{3 if taps <= 9 else 5 if taps <= 25 else 7}", macs
        return

    sides = [out] if inside <= FIRST else [out, inside]
    by8, by16 = (macs * prod(-(-side // block) * block / side for side in sides) for block in (8, 16))
    yield "pointwise" if taps == 1 else "sequence" if len(weight) == 3 else "dense", by8
    yield "ragged", by16 - by8


def optimiser_work(training: "TrainConfig", size: int) -> dict[str, float]:
    """Return the work of a step of the optimiser with weights of `size` bytes."""
    passes = _PASSES[training.optimiser] + 2 * (training.weight_decay > 0) + 3 * bool(training.clip)
    calls = 2.0
    if training.optimiser == "sgd" and training.momentum:
        passes, calls = passes + 3, calls + 2
    return {"memory": float(passes * size), "calls": calls, "steps": 1.0}


def of_batch(less: Work, more: Work, few: int, size: int, extra: Work) -> Work:
    """Return the work of a batch of `size`, given that of `few` examples and of one more, with that of the optimiser.

    A step on a single example may run other operators, so no more is taken to grow with the batch than there is.
    """
    found = dict(extra)
    for kind, amount in more.items():
        growth = 0.0 if kind in PER_CALL else min(max(amount - less.get(kind, 0.0), 0.0), amount / (few + 1))
        found[kind] = found.get(kind, 0.0) + amount + (size - few - 1) * growth
    return found


def largest(less: Sequence[float], more: Sequence[float], few: int, size: int) -> int:
    """Return the most bytes that an operator touches in a step on `size` examples.

    Args:
        less: bytes of each operator of a step on `few` examples.
        more: likewise on one example more.
        few: of the former.
        size: of the batch.

    """
    # Where other operators ran, each is taken to grow with the batch.
    less = less if len(less) == len(more) else [0.0] * len(more)
    growths = [min(max(b - a, 0.0), b / (few + 1)) for a, b in zip(less, more, strict=True)]
    return int(max((b + (size - few - 1) * growth for b, growth in zip(more, growths, strict=True)), default=0.0))
