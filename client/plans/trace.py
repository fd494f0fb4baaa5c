"""What one training step of a module asks of convolutions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diastole.client.kernels import perceptron
from diastole.client.kernels.convolver import ConvShape
from diastole.client.plans.apply import is_convolution, is_large
from diastole.client.plans.convolvers import broken, macs
from diastole.models.networks.convnext import Block
from diastole.models.networks.mobilenet import DepthWise
from diastole.models.watching import Watching

GROUPED = 10
"""Times as long as other multiply-accumulates those of PyTorch's convolutions in groups take, which share nothing."""


@dataclass(frozen=True, slots=True)
class Use:
    """A convolution of a module.

    Attributes:
        path: of the layer.
        shape: in which it runs, in channels-last memory.
        grad_input: whether anybody needs the gradient of its input.
        grad_weight: whether anybody needs that of its weight.

    """

    path: str
    shape: ConvShape
    grad_input: bool
    grad_weight: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """What a step asks for.

    Attributes:
        uses: convolutions that a plan may change.
        hidden: shapes of convolutions that run elsewhere, so that PyTorch computes them whatever a plan says.
        fused: paths of those that a kernel of our own computes with others, in float32 (`client/plans/fused.py`).
        norms: whether there is a GroupNorm.
        pools: whether there is a max-pooling.
        dense: whether there is a large dense layer.

    """

    uses: tuple[Use, ...] = ()
    hidden: tuple[ConvShape, ...] = ()
    fused: frozenset[str] = frozenset()
    norms: bool = False
    pools: bool = False
    dense: bool = False

    @property
    def safe(self) -> bool:
        """Whether channels-last memory may reach what a plan cannot change."""
        return not any(broken(shape) for shape in self.hidden)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions, forward; each of one in groups counts as `GROUPED`."""
        shapes = (*(use.shape for use in self.uses), *self.hidden)
        return sum(macs(shape) * shape.batch * (GROUPED if shape.groups > 1 else 1) for shape in shapes)


class Tracer:
    """Watches a module, which it does not change, run forward."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._seen: dict[str, list[Use]] = {}
        self._shapes = _Shapes()

    def __enter__(self) -> "Tracer":
        """Begin."""
        self._stack = ExitStack()
        for path, layer in self._module.named_modules():
            if is_convolution(layer):
                hook = layer.register_forward_pre_hook(self._see(path, layer))
                self._stack.callback(hook.remove)
        self._stack.enter_context(self._shapes)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stack.close()

    def trace(self, few: int, batch: int) -> Trace:
        """Return what steps on `batch` examples ask for, given that one on `few` was seen.

        A layer that ran in more than one shape is left to PyTorch.
        """
        uses = [seen[0] for seen in self._seen.values() if len(set(seen)) == 1]
        known = Counter(use.shape for use in uses for _ in self._seen[use.path])
        hidden = Counter(self._shapes.found) - known
        layers = [type(layer) for layer in self._module.modules()]
        return Trace(
            tuple(replace(use, shape=_scaled(use.shape, few, batch)) for use in uses),
            tuple(_scaled(shape, few, batch) for shape in hidden.elements()),
            _fused(self._module),
            nn.GroupNorm in layers,
            nn.MaxPool2d in layers,
            any(map(is_large, self._module.modules())),
        )

    def _see(self, path: str, layer: Any) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (x,) = inputs
            if x.ndim == 4:
                self._seen.setdefault(path, []).append(_use(path, layer, x))

        return hook


def _fused(module: nn.Module) -> frozenset[str]:
    blocks = [path for path, layer in module.named_modules() if type(layer) is Block]
    if not blocks or not perceptron.available():
        return frozenset()
    return frozenset(f"{path}.{name}".lstrip(".") for path in blocks for name in ("widen", "narrow"))


def _scaled(shape: ConvShape, few: int, batch: int) -> ConvShape:
    return replace(shape, batch=max(1, shape.batch * batch // few))


def _use(path: str, layer: Any, x: Tensor) -> Use:
    n, channels, height, width = x.shape
    if type(layer) is DepthWise:
        side, out, groups = layer.kernel, channels, channels
        kernel, stride, padding = (side, side), (layer.stride,) * 2, (side // 2,) * 2
    else:
        kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
        out, groups = layer.out_channels, layer.groups
    shape = ConvShape(n, (channels, out), (height, width), kernel, stride, padding, groups, x.dtype, channels_last=True)
    return Use(path, shape, x.requires_grad, layer.weight.requires_grad)


class _Shapes(Watching):  # type: ignore[no-untyped-call]
    """Notes the shape of every two-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[ConvShape] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default and args[0].ndim == 4 and not args[6]:
            x, weight, _, stride, padding, _, _, _, groups = args
            n, channels, height, width = x.shape
            out, _, *kernel = weight.shape
            pairs = (tuple(kernel), tuple(stride), tuple(padding))
            self.found.append(ConvShape(n, (channels, out), (height, width), *pairs, groups, x.dtype, True))
        return func(*args, **(kwargs or {}))
