"""What becomes of a user's module before anything else: draws, statistics, constants and tied parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diastole.models.dropout import replace_dropout
from diastole.models.recalibrate import keep_no_statistics


def prepare(module: nn.Module) -> nn.Module:
    """Return the module, changed in place: its state is its parameters, and training draws from the task's seed.

    Buffers are constants, which every process makes for itself, and no part of a state dict. Raises `ModelError` for a
    layer that drops everything.
    """
    replace_dropout(module)
    keep_no_statistics(module)
    for layer in module.modules():
        there = {name for name, buffer in layer._buffers.items() if buffer is not None}
        if persistent := there - layer._non_persistent_buffers_set:
            setattr(layer, PERSISTENT, persistent)
            layer._non_persistent_buffers_set |= persistent
    return keep_tied(module)


def take_constants(source: nn.Module, target: nn.Module) -> None:
    """Let `target`, which has the layers of `source`, have the constant buffers of `source` itself too."""
    for name, buffer in source.named_buffers(recurse=False):
        target.register_buffer(name, buffer, persistent=False)
    setattr(target, PERSISTENT, getattr(source, PERSISTENT, set()))


def give_back(module: nn.Module) -> None:
    """Let, in place, the constant buffers of a user's module be in its state dict again."""
    for layer in module.modules():
        layer._non_persistent_buffers_set -= getattr(layer, PERSISTENT, set())


def keep_tied(module: nn.Module) -> nn.Module:
    """Let the parameters that two layers share, if there are any, stay one when a state is loaded."""
    if tied(module):
        module.register_load_state_dict_pre_hook(_repeat)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(_tie)  # type: ignore[no-untyped-call]
        setattr(module, TIED, tied(module))
    return module


TIED, PERSISTENT = "_diastole_tied", "_diastole_persistent"


def tied(module: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that several layers share, each with the name that counts."""
    names: dict[int, str] = {}
    found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name:
            found[name] = first
    return found


def hollowed(module: nn.Module) -> nn.Module:
    """Return the module, in place without the values of its parameters; constants keep theirs."""
    made: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                layer._parameters[name] = made.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
        if isinstance(layer, nn.RNNBase):
            layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    return module


def _repeat(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put a shared parameter under its further names too."""
    names: Mapping[str, str] = getattr(module, TIED)
    for name, first in names.items():
        if f"{prefix}{first}" in state:
            state.setdefault(f"{prefix}{name}", state[f"{prefix}{first}"])


def _tie(module: nn.Module, _: Any) -> None:
    """Share parameters again, if loading has put one for each name."""
    names: Mapping[str, str] = getattr(module, TIED)
    for name, first in names.items():
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, module.get_parameter(first))


def constants(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are no parameters, by name: buffers, and plain attributes.

    A weight that a layer computes anew of `NAME_v` or `NAME_orig`, as torch's older weight norm does, is none.
    """
    found = dict(module.named_buffers())
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        found |= {
            f"{prefix}{name}": value
            for name, value in vars(layer).items()
            if isinstance(value, Tensor) and not {f"{name}_v", f"{name}_orig"} & set(layer._parameters)
        }
    return {name: tensor for name, tensor in found.items() if not tensor.requires_grad}


def move_constants(module: nn.Module, device: torch.device) -> None:
    """Move the tensors that are no parameters, in place, to where the others will be.

    So are those of networks that only lend a module their forward passes (`lent`), and are no parts of it.
    """
    for part in list(module.modules()):
        for net in getattr(part, "lent", ()):
            move_constants(net, device)
    for name, tensor in constants(module).items():
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, tensor.to(device))
