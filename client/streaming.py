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
    """One layer of the chain, or several that are computed together: what is kept between them is their result alone.

    `run` takes columns that are padded already; `held` is the last window's result, `[1, channels, columns]`.
    """

    run: Callable[[Tensor], Tensor]
    reach: _Reach = _Reach()
    fill: float = 0.0
    over_window: bool = False
    held: Tensor | None = None

    def whole(self, x: Tensor) -> Tensor:
        """Return the result for a whole window."""
        padding = self.reach.padding
        return self.run(F.pad(x, (padding, padding), value=self.fill) if padding else x)

    def edges(self, x: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the result's columns before `first`, and those from `last` on, given the whole input."""
        if self.over_window:
            # Its statistics need the whole input, which costs little beside a convolution.
            whole = self.run(x)
            return whole[..., :first], whole[..., last:]
        reach = self.reach
        right = x[..., max(0, last * reach.stride - reach.padding) :]
        early = max(0, reach.padding - last * reach.stride)
        right = F.pad(right, (early, reach.padding), value=self.fill) if early or reach.padding else right
        if not first:
            result = self.run(right)
            return result[..., :0], result
        size = (first - 1) * reach.stride + reach.kernel
        left = F.pad(x[..., : size - reach.padding], (reach.padding, -size % reach.stride), value=self.fill)
        # One call for both; the columns between, which see some of each, are dropped.
        result = self.run(torch.cat([left, right], -1))
        return result[..., :first], result[..., left.shape[-1] // reach.stride :]

    def then(self, other: "_Layer") -> "_Layer | None":
        """Return this layer and the next as one; None if there must be something between: zeros, or a whole map."""
        mine, its = self.reach, other.reach
        if its.padding or other.over_window or (self.over_window and (its.kernel, its.stride) != (1, 1)):
            return None
        reach = _Reach(mine.kernel + (its.kernel - 1) * mine.stride, mine.stride * its.stride, mine.padding)
        return _Layer(lambda x: other.run(self.run(x)), reach, self.fill, self.over_window)


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
        self._plan = list(self._spans())
        self._window: Tensor | None = None
        self._last: Tensor | None = None
        self._due = 0

    @property
    def share(self) -> float:
        """The share of all columns of all maps that each window computes; of the first window all are."""
        computed = total = 0
        for columns, first, last in self._plan:
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

    def _spans(self) -> Iterable[tuple[int, int, int]]:
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
        for layer, (_, first, last) in zip(self._layers, self._plan, strict=True):
            before, hop = layer.held, hop // layer.reach.stride
            if before is None or last <= first:
                x = layer.held = layer.whole(x)
            else:
                left, right = layer.edges(x, first, last)
                x = layer.held = torch.cat([left, before[..., first + hop : last + hop], right], -1)
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
        elif found and (joined := found[-1].then(known)):
            found[-1] = joined
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

        return _Layer(convolve, _Reach((kernel - 1) * dilation + 1, stride, padding))
    if isinstance(module, nn.MaxPool1d | nn.AvgPool1d):
        return _pool(module)
    if type(module) in POINTWISE or (type(module) is nn.BatchNorm1d and module.running_mean is not None):
        return _Layer(module)
    if type(module) in OVER_WINDOW:
        return _Layer(module, over_window=True)
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
        return _Layer(lambda x: F.max_pool1d(x, kernel, stride), reach, fill=float("-inf"))
    if padding and not module.count_include_pad:
        return None
    return _Layer(lambda x: F.avg_pool1d(x, kernel, stride), reach)
