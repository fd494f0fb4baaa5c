"""Running a module and a narrower one so that they agree: what depends on the number of channels is levelled.

A norm, a mean and a softmax over channels are over fewer ones in a narrow module, and a factor such as an attention's
1/sqrt(channels) is another one. That is meant. Here norms only divide by one number, scale and shift, means divide both
times by the number of the whole module's entries, softmax becomes a clamp, and factors are the whole module's.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from diastole.models.watching import Watching

aten = torch.ops.aten
FACTORS = ("aten::mul", "aten::mul_", "aten::div", "aten::div_")


class Levelled(Watching):  # type: ignore[no-untyped-call]
    """Levels operators; the second time that it is entered with the numbers of the first."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted: list[tuple[str, Any]] = []
        self._next = -1

    def again(self) -> "Levelled":
        """Let the next block run with the numbers of the first one."""
        self._next = 0
        return self

    def noted(self, name: str, value: Any) -> Any:
        """Return the number that the first run had in this place."""
        if self._next < 0:
            self._noted.append((name, value))
        elif self._next < len(self._noted) and self._noted[self._next][0] == name:
            value = self._noted[self._next][1]
            self._next += 1
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator."""
        name, kwargs = func._schema.name, kwargs or {}
        if level := LEVELS.get(name):
            return level(self, *args, **kwargs)
        if name in FACTORS and not (isinstance(args[1], Tensor) and args[1].ndim):
            args = (args[0], self.noted(name, args[1]))
        return func(*args, **kwargs)


def _axes(x: Tensor, axes: Any) -> list[int]:
    return [axes] if isinstance(axes, int) else list(axes or range(x.ndim))


def _mean(level: Levelled, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    axes = _axes(x, dim)
    count: int = level.noted("count", prod(x.shape[axis] for axis in axes))
    return x.sum(axes, keepdim) / count


def _variance(level: Levelled, x: Tensor, dim: Any = None, *, keepdim: bool = False, **_: Any) -> Tensor:
    return _mean(level, x * x, dim, keepdim)


def _deviation(level: Levelled, x: Tensor, dim: Any = None, *, keepdim: bool = False, **_: Any) -> Tensor:
    return _variance(level, x, dim, keepdim=keepdim).sqrt()


def _both(level: Levelled, x: Tensor, dim: Any = None, *, keepdim: bool = False, **_: Any) -> tuple[Tensor, Tensor]:
    return _variance(level, x, dim, keepdim=keepdim), _mean(level, x, dim, keepdim)


def _clamp(level: Levelled, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.clamp(-1, 1)


def _scaled(level: Levelled, x: Tensor) -> Tensor:
    scale: float = level.noted("scale", float(x.square().mean().sqrt()) + 1e-6)
    return x / scale


def _layer_norm(level: Levelled, x: Tensor, _: Any, weight: Tensor | None, bias: Tensor | None, __: Any) -> Any:
    x = _scaled(level, x)
    x = x if weight is None else x * weight
    return (x if bias is None else x + bias), x, x


def _batch_norm(level: Levelled, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Any:
    # A weight that is normalised has its inputs where a batch has its examples.
    x, shape = _scaled(level, x), [-1, *[1] * (x.ndim - 2)]
    x = x if weight is None else x * weight.view(shape)
    return (x if bias is None else x + bias.view(shape)), x, x


def _rms_norm(level: Levelled, x: Tensor, _: Any, weight: Tensor | None, *__: Any) -> Any:
    x = _scaled(level, x)
    return (x if weight is None else x * weight), x


def _weight_norm(level: Levelled, direction: Tensor, length: Tensor, _: Any = 0) -> Any:
    # A dropped channel has no direction.
    return direction * length, length


LEVELS: dict[str, Callable[..., Any]] = {
    "aten::mean": _mean,
    "aten::amax": _mean,
    "aten::amin": _mean,
    "aten::logsumexp": _mean,
    "aten::var": _variance,
    "aten::std": _deviation,
    "aten::var_mean": _both,
    "aten::_softmax": _clamp,
    "aten::_log_softmax": _clamp,
    "aten::_safe_softmax": _clamp,
    "aten::native_layer_norm": _layer_norm,
    "aten::native_batch_norm": _batch_norm,
    "aten::_fused_rms_norm": _rms_norm,
    "aten::_weight_norm_interface": _weight_norm,
}
