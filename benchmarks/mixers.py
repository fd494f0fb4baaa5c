"""What it costs to mix places: the layers that networks for weak devices are made of, beside a 7x7 depthwise one."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diastole.benchmarks.row import Row, compare
from diastole.client.kernels import depthwise
from diastole.client.kernels.convolver import ConvShape
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.convnext import Block
from diastole.models.seeds import generator, reference_plan

BATCH = 32
MAPS = ((32, 32), (64, 16), (128, 8))
"""Channels, and height and width."""


def rows(batch: int = BATCH, maps: tuple[tuple[int, int], ...] = MAPS, repeats: int = 9) -> list[Row]:
    """Measure `mixer.NAME.CHANNELSxSIZE`: milliseconds of one layer forward and backward, float32, one thread.

    All images are in channels-last memory. Baseline: a 7x7 depthwise convolution by PyTorch. `own7` is that of our
    kernel, where there is a compiler; `partial` and `inception` are the mixers of `models/networks/convnext.py`.
    """
    found = []
    with reference_plan():
        for channels, size in maps:
            x = torch.randn(batch, channels, size, size, generator=generator("mixers"))
            x = x.contiguous(memory_format=torch.channels_last)
            baseline = _both(nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False), x)
            for name, run in _layers(channels, x).items():
                value, its = compare(run, baseline, repeats, time.thread_time)
                found.append(Row.of(f"mixer.{name}.{channels}x{size}", 1e3 * value, 1e3 * its, "ms", "lower"))
    return found


def _layers(channels: int, x: Tensor) -> dict[str, Callable[[], object]]:
    layers: dict[str, Callable[[], object]] = {
        "dense3": _both(nn.Conv2d(channels, channels, 3, padding=1, bias=False), x),
        "pointwise": _both(nn.Conv2d(channels, channels, 1, bias=False), x),
        "depthwise3": _both(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), x),
    }
    for mixer in ("partial", "inception"):
        model = ModelConfig("convnext", (3, 32, 32), 10, (channels,), (1,), group=4, mixer=mixer)
        layers[mixer] = _both(Block(model, channels, channels, shrinks=False).mix, x)
    pair, sizes = (channels, channels), (int(x.shape[2]), int(x.shape[3]))
    shape = ConvShape(len(x), pair, sizes, (7, 7), (1, 1), (3, 3), channels, channels_last=True)
    own = depthwise.CONVOLVER
    if own.takes(shape):
        weight = torch.randn(channels, 1, 7, 7, generator=generator("mixers"))
        layers["own7"] = lambda: (
            own.forward(x, weight, shape),
            own.grad_input(x, weight, shape),
            own.grad_weight(x, x, shape),
        )
    return layers


def _both(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a call of a layer's forward and backward pass."""
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = x.detach().requires_grad_()
    weights = list(layer.parameters())

    def run() -> object:
        with torch.enable_grad():
            outputs = layer(inputs)
        return torch.autograd.grad(outputs, [inputs, *weights], x)

    return run
