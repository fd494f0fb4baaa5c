"""Kernels of our own that are no convolutions, beside what PyTorch computes the same with.

What convolutions take is measured, layer by layer, by each search for a plan: `diastole bench device` tells it.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.benchmarks.row import Row
from diastole.client.kernels import gelu, groupnorm, normpool, pooling
from diastole.models.allocator import keep_pages
from diastole.models.seeds import generator, reference_plan

BATCH, GROUP = 32, 4
MAPS = ((32, 28), (64, 14), (8, 32), (96, 32), (64, 8))
"""Channels, and height and width: of our CNNs, of a mobilenet, and of a ResNet's third stage."""

Layer = Callable[[Tensor], Tensor]


def rows(batch: int = BATCH, maps: tuple[tuple[int, int], ...] = MAPS, repeats: int = 20) -> list[Row]:
    """Measure `kernel.NAME.CHANNELSxSIZE`: milliseconds forward and backward, float32, one thread, least of all turns.

    Images are in channels-last memory. Baseline: PyTorch, in the memory format in which it is faster there. Without a
    compiler there are no rows.
    """
    found: list[Row] = []
    if not groupnorm.available():
        return found
    keep_pages()
    with reference_plan():
        for channels, size in maps:
            first = torch.randn(batch, channels, size, size, generator=generator("kernels"))
            last = first.contiguous(memory_format=torch.channels_last)
            for name, (ours, theirs) in _layers(channels).items():
                calls = [_both(ours, last), _both(theirs, last), _both(theirs, first)]
                turns = [[_seconds(call) for call in calls] for _ in range(1 + repeats)][1:]
                value, *others = (1e3 * min(column) for column in zip(*turns, strict=True))
                found.append(Row.of(f"kernel.{name}.{channels}x{size}", value, min(others), "ms", "lower"))
    return found


def _layers(channels: int) -> dict[str, tuple[Layer, Layer]]:
    """Return what our kernels compute, and the same by PyTorch."""
    groups = channels // GROUP
    weight, bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def norm(x: Tensor) -> Tensor:
        return F.group_norm(x, groups, weight, bias)

    return {
        "norm": (lambda x: groupnorm.group_norm(x, groups, weight, bias), norm),
        "norm-relu": (
            lambda x: groupnorm.group_norm_then(x, "relu", groups, weight, bias),
            lambda x: F.relu(norm(x)),
        ),
        "norm-hardswish": (
            lambda x: groupnorm.group_norm_then(x, "hardswish", groups, weight, bias),
            lambda x: F.hardswish(norm(x)),
        ),
        "norm-add-relu": (
            lambda x: groupnorm.group_norm_add(x, x, "relu", groups, weight, bias),
            lambda x: F.relu(norm(x) + x),
        ),
        "norm-relu-pool": (
            lambda x: normpool.group_norm_relu_pool(x, groups, weight, bias),
            lambda x: F.max_pool2d(F.relu(norm(x)), 2),
        ),
        "relu-pool": (pooling.relu_pool, lambda x: F.max_pool2d(F.relu(x), 2)),
        "gelu": (gelu.gelu, F.gelu),
    }


def _both(layer: Layer, x: Tensor) -> Callable[[], object]:
    """Return a call of a layer's forward and backward pass."""
    inputs = x.detach().requires_grad_()
    with torch.no_grad():
        gradient = torch.ones_like(layer(x))

    def run() -> object:
        with torch.enable_grad():
            outputs = layer(inputs)
        return torch.autograd.grad(outputs, inputs, gradient)

    return run


def _seconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began
