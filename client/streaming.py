"""Inference on a stream: overlapping windows of a signal, of which each shares most of its activations with the last.

A convolution sees the same values wherever a window begins, so all columns of a map that saw neither the new samples
nor the zeros beyond an edge are those of the window before, moved. Only the others are computed (Kechris et al., "Don't
Think It Twice", 2024, arXiv 2408.03223, whose pooling rule holds here: windows must move by whole strides). Their
method lets a map's edges see the signal in the place of the zeros that the model was trained with, and so errs; here
the edges are computed anew for each window, and the outputs are those of the plain model up to rounding. The work falls
linearly with the hop until the edges are all that is left.

A normalisation over the whole window (GroupNorm) changes every column a little. Exactly, nothing behind it can be kept.
With `approximate`, columns keep the statistics of the window in which they were computed; `deviation` measures what
that does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.dropout import Dropout
from diastole.models.errors import ModelError
from diastole.models.networks.staged import Network

POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Softplus),
    *(nn.Identity, nn.Dropout, Dropout),
)
"""Layers that give each value from the one in the same place; dropout does nothing in inference."""

OVER_WINDOW = (nn.GroupNorm, nn.InstanceNorm1d)
"""Layers whose every output depends on the whole window."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which columns of its input a layer's column j sees: `kernel` columns from `j * stride - padding` on."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0

    def length(self, columns: int) -> int:
        """Return how many columns come of so many."""
        return (columns + 2 * self.padding - self.kernel) // self.stride + 1

    def clean(self, first: int, last: int) -> tuple[int, int]:
        """Return the columns, from and to before, that see none but those from `first` to before `last`."""
        return ceil((first + self.padding) / self.stride), (last - self.kernel + self.padding) // self.stride + 1


@dataclass(slots=True)
class _Layer:
    """A layer of the chain: its reach, and how it is computed from input columns that are padded already."""

    module: nn.Module
    reach: _Reach
    run: Callable[[Tensor], Tensor]
    fill: float = 0.0
    over_window: bool = False
    held: Tensor | None = None

    def columns(self, x: Tensor, first: int, last: int) -> Tensor:
        """Return the output's columns from `first` to before `last`, given the whole input `[1, channels, length]`."""
        if self.over_window:
            # Its statistics need the whole input, which costs little beside a convolution.
            return self.run(x)[..., first:last]
        reach = self.reach
        start, stop = first * reach.stride - reach.padding, (last - 1) * reach.stride - reach.padding + reach.kernel
        seen = x[..., max(0, start) : min(stop, x.shape[-1])]
        edges = (max(0, -start), max(0, stop - x.shape[-1]))
        return self.run(F.pad(seen, edges, value=self.fill) if any(edges) else seen)


class Stream:
    """Gives a model's output for each window of a stream, and computes what is new in it."""

    def __init__(self, module: nn.Module, length: int, hop: int, *, approximate: bool = False) -> None:
        """Prepare to follow a stream.

        Args:
            module: a chain of one-dimensional convolutions, poolings, normalisations and pointwise layers, and then
                anything: an `nn.Sequential`, or a network of this project with such stages ("cnn"). It is set to
                evaluation.
            length: samples in a window.
            hop: samples between the beginnings of two windows, a multiple of the chain's strides.
            approximate: whether normalisations over the window keep the statistics of earlier windows.

        Raises `ModelError` for a module that is no such chain, and for a hop that does not fit.

        """
        if not 0 < hop <= length:
            raise ModelError(f"hop {hop}: a whole number from 1 to the window's length, {length}, is accepted")
        module.eval()
        self._plain, self._length, self._hop, self._approximate = module, length, hop, approximate
        self._layers, self._head = _chain(module)
        if not any(layer.reach.kernel > 1 for layer in self._layers):
            raise ModelError(
                f"a {type(module).__name__} does not begin with one-dimensional convolutions; an nn.Sequential that "
                'does, or model "cnn" on [channels, length], can be streamed'
            )
        strides = 1
        for layer in self._layers:
            strides *= layer.reach.stride
        if hop % strides:
            raise ModelError(f"hop {hop}: the model halves and strides by {strides} in all; a multiple is accepted")
        self._window: Tensor | None = None
        self._last: Tensor | None = None
        self._due = 0

    @property
    def share(self) -> float:
        """The share of all columns of all maps that each window computes; of the first window all are."""
        computed = total = 0
        for columns, first, last in self._plan():
            computed, total = computed + columns - max(0, last - first), total + columns
        return computed / total

    def push(self, samples: Tensor) -> list[Tensor]:
        """Take in samples `[channels, n]`, any number, and return the model's output for each window that they end."""
        found = []
        with torch.inference_mode():
            for part in self._parts(samples):
                window = part if self._window is None else torch.cat([self._window, part], -1)
                fresh = self._layers[0].held is None
                self._window = window = window[..., -self._length :]
                self._due += part.shape[-1]
                if window.shape[-1] == self._length and (fresh or self._due == self._hop):
                    self._last = window[None]
                    found.append(self._step(self._last))
                    self._due = 0
        return found

    def deviation(self) -> float:
        """Return how far the plain model is from the last output: the norm of the difference by that of the output."""
        if self._last is None or self._layers[-1].held is None:
            raise ModelError("the stream has not had a whole window yet")
        with torch.inference_mode():
            mine, plain = self._head(self._layers[-1].held), self._plain(self._last)
            return float((mine - plain).norm() / plain.norm().clamp_min(1e-12))

    def _parts(self, samples: Tensor) -> Iterable[Tensor]:
        """Cut samples where windows end."""
        at = 0
        while at < samples.shape[-1]:
            have = 0 if self._window is None else self._window.shape[-1]
            missing = self._length - have if self._layers[0].held is None else self._hop - self._due
            yield samples[..., at : at + missing]
            at += missing

    def _plan(self) -> Iterable[tuple[int, int, int]]:
        """Yield, for each layer, its columns, and which of them, from and to before, are those of the last window."""
        columns, first, last = self._length, 0, self._length - self._hop
        for layer in self._layers:
            columns = layer.reach.length(columns)
            first, last = layer.reach.clean(first, last)
            if (layer.over_window and not self._approximate) or last <= first:
                first = last = 0
            yield columns, first, last

    def _step(self, x: Tensor) -> Tensor:
        """Return the model's output for a window `[1, channels, length]`."""
        hop = self._hop
        for layer, (columns, first, last) in zip(self._layers, self._plan(), strict=True):
            before, hop = layer.held, hop // layer.reach.stride
            if before is None or last <= first:
                x = layer.held = layer.columns(x, 0, columns)
            else:
                kept = before[..., first + hop : last + hop]
                edges = [layer.columns(x, *span) for span in ((0, first), (last, columns)) if span[0] < span[1]]
                x = layer.held = torch.cat([*edges[: bool(first)], kept, *edges[bool(first) :]], -1)
        return self._head(x)


def _chain(module: nn.Module) -> tuple[list[_Layer], Callable[[Tensor], Tensor]]:
    """Return the layers that can be streamed, and what comes behind them."""
    if isinstance(module, Network) and type(module).enter is Network.enter:
        layers, head = [*module.stages], module.leave
    elif isinstance(module, nn.Sequential):
        layers, head = [*module], lambda x: x
    else:
        return [], module
    found, rest = list[_Layer](), list[nn.Module]()
    for layer in _flat(layers):
        known = None if rest else _layer(layer)
        if known is None:
            rest.append(layer)
        else:
            found.append(known)
    behind = nn.Sequential(*rest)
    return found, lambda x: head(behind(x))


def _flat(layers: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for layer in layers:
        if type(layer) is nn.Sequential:
            yield from _flat(layer)
        else:
            yield layer


def _layer(module: nn.Module) -> _Layer | None:
    """Return how a layer is computed by columns, or None if that is not known."""
    if type(module) is nn.Conv1d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        (kernel,), (stride,), (padding,), (dilation,) = (
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
        )
        convolution = module

        def convolve(x: Tensor) -> Tensor:
            weight, bias = convolution.weight, convolution.bias
            return F.conv1d(x, weight, bias, stride, 0, dilation, convolution.groups)

        return _Layer(module, _Reach((kernel - 1) * dilation + 1, stride, padding), convolve)
    if isinstance(module, nn.MaxPool1d | nn.AvgPool1d):
        return _pool(module)
    if type(module) is nn.BatchNorm1d and module.running_mean is not None:
        return _Layer(module, _Reach(), module)
    if type(module) in POINTWISE:
        return _Layer(module, _Reach(), module)
    if type(module) in OVER_WINDOW:
        return _Layer(module, _Reach(), module, over_window=True)
    return None


def _pool(module: nn.MaxPool1d | nn.AvgPool1d) -> _Layer | None:
    def one(value: int | tuple[int, ...]) -> int:
        return value if isinstance(value, int) else value[0]

    kernel, stride, padding = one(module.kernel_size), one(module.stride), one(module.padding)
    reach = _Reach(kernel, stride, padding)
    if module.ceil_mode:
        return None
    if isinstance(module, nn.MaxPool1d):
        if one(module.dilation) != 1 or module.return_indices:
            return None
        return _Layer(module, reach, lambda x: F.max_pool1d(x, kernel, stride), fill=float("-inf"))
    if padding and not module.count_include_pad:
        return None
    return _Layer(module, reach, lambda x: F.avg_pool1d(x, kernel, stride))
