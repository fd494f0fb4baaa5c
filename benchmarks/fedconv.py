"""What FedConv's maps cost: as `models.convmaps` applies them, and by direct convolution as in the authors' code."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.models import RESNET18
from diastole.benchmarks.row import Row
from diastole.models.hollow import hollow
from diastole.models.methods.fedconv import convmaps
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator, reference_plan

TOLERANCE = 1e-4
LONG_SECONDS = 1.0
"""A direct convolution that takes longer than this is timed once, the others once a repeat."""

Map = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[str, torch.Size, torch.Size]
"""What the cost of one position depends on: the map, and the sizes of its image and kernel."""

FAST: dict[str, Map] = {"compress": convmaps.compress, "dilate": convmaps.dilate}
DIRECT: dict[str, Map] = {"compress": F.conv2d, "dilate": F.conv_transpose2d}


@dataclass(frozen=True, slots=True)
class Layer:
    """One map of one tensor.

    Attributes:
        map: "compress" or "dilate".
        images: `[P, rows, columns]`, frozen.
        kernel: `[P, h, w]`, which learns.
        pull: the gradient that arrives at the outcome.

    """

    map: str
    images: Tensor
    kernel: Tensor
    pull: Tensor

    @property
    def shape(self) -> Shape:
        """The shape of one position."""
        return self.map, self.images.shape[1:], self.kernel.shape[1:]


def rows(model: ModelConfig = RESNET18, widths: Sequence[float] = (0.75, 0.5625), repeats: int = 3) -> list[Row]:
    """Measure `fedconv.resnet18`: seconds of one pass over every map of the model at every width, on one thread.

    A pass compresses every tensor that a width changes and dilates a change of the small size, forward and
    backward with gradients for the kernels: what a training step of the maps costs beside the model's own. The
    value is the median of `repeats` whole passes through `models.convmaps`.

    The baseline convolves directly, position by position, one image and one kernel a call. A whole pass of it
    takes more than ten minutes, so it is a scaled sample: one position of each distinct shape is timed at full
    size, forward and backward, and counted as often as the shape has positions. Samples take turns with the
    passes and are medians of `repeats`, except that one above `LONG_SECONDS` is not repeated.

    Raises `BenchmarkError` if the two differ in a value or a gradient by more than 1e-4 of its norm.
    """
    with reference_plan():
        layers = _layers(model, widths)
        positions: Counter[Shape] = Counter()
        for layer in layers:
            positions[layer.shape] += len(layer.images)
        sampled = {layer.shape: layer for layer in layers}
        samples: dict[Shape, list[float]] = {shape: [] for shape in sampled}
        passes: list[float] = []
        _pass(layers)
        for _ in range(repeats):
            passes.append(_pass(layers))
            for shape, layer in sampled.items():
                if not samples[shape] or samples[shape][0] <= LONG_SECONDS:
                    samples[shape].append(_sample(layer))
        baseline = sum(count * median(samples[shape]) for shape, count in positions.items())
    return [Row.of("fedconv.resnet18", median(passes), baseline, "s (baseline scaled from a sample)", "lower")]


def _layers(model: ModelConfig, widths: Sequence[float]) -> list[Layer]:
    """Return both maps of every tensor that a width changes, all of them with random values."""
    draws = generator("fedconv")
    layers = []
    for width in widths:
        with hollow():
            large = dict(build(model).named_parameters())
            small = dict(build(model, spec_of(width)).named_parameters())
        for name in large:
            full, cut = convmaps.images(large[name]).shape, convmaps.images(small[name]).shape
            if full == cut:
                continue
            taps = (full[0], full[1] - cut[1] + 1, full[2] - cut[2] + 1)
            for kind, before, after in (("compress", full, cut), ("dilate", cut, full)):
                images, kernel, pull = (torch.randn(shape, generator=draws) for shape in (before, taps, after))
                layers.append(Layer(kind, images, kernel.requires_grad_(), pull))
    return layers


def _pass(layers: Sequence[Layer]) -> float:
    """Run every map forward, then all of them backward; return the seconds and leave the kernels' gradients."""
    for layer in layers:
        layer.kernel.grad = None
    began = time.perf_counter()
    results = [FAST[layer.map](layer.images, layer.kernel) for layer in layers]
    torch.autograd.backward(results, [layer.pull for layer in layers])
    return time.perf_counter() - began


def _sample(layer: Layer) -> float:
    """Return the seconds of a layer's first position by direct convolution, and check the last pass against it."""
    image, pull = layer.images[0].contiguous()[None, None], layer.pull[0].contiguous()[None, None]
    kernel = layer.kernel[0].detach().clone()[None, None].requires_grad_()
    began = time.perf_counter()
    result = DIRECT[layer.map](image, kernel)
    result.backward(pull)  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    with torch.no_grad():
        value = FAST[layer.map](layer.images, layer.kernel)
    pairs = {"value": (value, result.detach()), "gradient": (_gradient(layer.kernel), _gradient(kernel))}
    for what, (got, wanted) in pairs.items():
        wrong = float((got[0] - wanted[0, 0]).norm() / wanted.norm())
        # Written so that NaN is refused too.
        if not wrong <= TOLERANCE:
            raise BenchmarkError(
                f"{layer.map} of an image {list(image.shape[2:])} by a kernel {list(kernel.shape[2:])}: the {what} "
                f"is {wrong:.1e} of its norm away from direct convolution; at most {TOLERANCE:g} is accepted"
            )
    return seconds


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
