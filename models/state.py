"""A model's parameters as a plain dictionary of tensors."""

import hashlib
import json
import math
from collections.abc import Mapping

from torch import Tensor, nn

from diastole.models.crossing import number, numbers
from diastole.models.errors import StateError
from diastole.models.recalibrate import keeping

State = dict[str, Tensor]


def state_of(module: nn.Module) -> State:
    """Return a detached copy of the module's parameters by name.

    Buffers are constants, which every process makes for itself. Raises `StateError` if some are running statistics:
    they would be averaged silently.
    """
    if kept := keeping(module):
        raise StateError(
            f"{type(module).__name__} has running statistics ({', '.join(map(repr, kept))}); use GroupNorm or LayerNorm"
        )
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def schema_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hexadecimal) of the names, shapes and dtypes, in name order; values do not matter."""
    schema = [[name, list(state[name].shape), str(state[name].dtype)] for name in sorted(state)]
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `state` has the names, shapes and dtypes of `expected` and only finite values.

    Raises `StateError` naming the first tensor that is missing, unknown, misshapen or not finite.
    """
    check_schema(state, expected)
    # A finite sum has finite terms, and takes a twentieth of the time of looking at each; finite terms may overflow.
    for (name, tensor), total in zip(state.items(), numbers([t.sum() for t in state.values()]), strict=True):
        if not math.isfinite(total) and not number(tensor.isfinite().all()):
            raise StateError(f"tensor {name!r} has values that are not finite")


def check_schema(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `state` has the names, shapes and dtypes of `expected`.

    Raises `StateError` naming the first tensor that is missing, unknown or misshapen.
    """
    for name in expected:
        if name not in state:
            raise StateError(f"tensor {name!r} is missing")
    for name, tensor in state.items():
        if name not in expected:
            raise StateError(f"tensor {name!r} is unknown; expected {', '.join(expected)}")
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise StateError(
                f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; expected {wanted.dtype} {list(wanted.shape)}"
            )


def tensor_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of all values, without any header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
