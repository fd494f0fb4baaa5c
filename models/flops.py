"""The FLOPs of operators: those that torch counts, and those that it gets wrong or does not know."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """Return the FLOPs of a convolution's gradients: each takes as many as the convolution itself."""
    return sum(wanted[:2]) * conv_flop_count(list(x_shape), list(weight_shape), list(grad_shape), transposed)


def _recurrent(x_shape: Sequence[int], inner: Sequence[int], outer: Sequence[int], *_: object, **__: object) -> int:
    """Return the FLOPs of one layer of an LSTM in one direction, on inputs `[length, n, channels]`."""
    return 2 * x_shape[0] * x_shape[1] * (prod(inner) + prod(outer))


def _recurrent_backward(*shapes: Any, **_: object) -> int:
    """Return the FLOPs of its gradients: of the inputs and states, and of the weights."""
    return 2 * _recurrent(*shapes)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Return the FLOPs of an attention `[n, heads, length, channels]`."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Return the FLOPs of its gradients, which need the weights once more."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_aten: Any = torch.ops.aten

# torch's own formula multiplies the gradient of a grouped convolution's weights by the number of groups, and it has
# none for the kernels that the CPU has for LSTM and attention.
_MORE = {
    _aten.convolution_backward: _convolution_backward,
    _aten.mkldnn_rnn_layer: _recurrent,
    _aten.mkldnn_rnn_layer_backward: _recurrent_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
# Torch wraps each to be given shapes for tensors: its walk through trees takes longer than many an operator.
_FORMULAS: Mapping[Any, Any] = {
    **{each: getattr(formula, "__wrapped__", None) for each, formula in flop_registry.items()},
    **_MORE,
}


def flops(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the FLOPs of one call of an operator, by its arguments and what it gave; 0 of one that has no formula."""
    formula = _FORMULAS.get(packet)
    if formula is None:
        return 0
    named = {name: _shapes(value) for name, value in kwargs.items()}
    return int(formula(*map(_shapes, args), **named, out_shape=_shapes(result)))


def _shapes(value: Any) -> Any:
    """Return a tensor's shape, those of the tensors among values, or what is no tensor as it is."""
    if isinstance(value, torch.Tensor):
        return value.shape
    return [_shapes(each) for each in value] if isinstance(value, list | tuple) else value
