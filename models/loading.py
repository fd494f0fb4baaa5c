"""Filling a module with the tensors of a state, where they are."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from diastole.models.crossing import device_of
from diastole.models.errors import StateError
from diastole.models.networks.custom.made import give_back, move_constants
from diastole.models.recalibrate import STATISTICS
from diastole.models.state import State, check_state


@runtime_checkable
class Banded(Protocol):
    """A module that has weights in parts, and gives and takes them whole in state dicts."""

    def cut(self, state: Mapping[str, Tensor]) -> State:
        """Return parameters as the module has them."""
        ...


def load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a module, which may be hollow, copies of the tensors of `state`, in place; it then is where they are."""
    copies = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    module.load_state_dict(copies, assign=True)
    if (device := device_of(state)).type != "cpu":
        move_constants(module, device)
    return module


def fill(module: nn.Module, state: State) -> nn.Module:
    """Give a module, in place, its parameters, and its normalisations their statistics. Raises `StateError`.

    Its constant buffers are in its state dict then, so that the user's own class takes it.
    """
    if isinstance(module, Banded):
        state = module.cut(state)
    own = dict(module.named_parameters(remove_duplicate=False))
    check_state({name: tensor for name, tensor in state.items() if name in own}, own)
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        if name not in own:
            layer = _layer(module, owner)
            if layer is None or last not in STATISTICS:
                raise StateError(f"tensor {name[:100]!r} is none of this model")
            layer.track_running_stats = True
            setattr(layer, last, tensor)
            layer._non_persistent_buffers_set.discard(last)
    module.load_state_dict(state, assign=True)
    give_back(module)
    return module


def used(module: nn.Module) -> State:
    """Return what a trained module is used with: parameters and statistics by name, as `fill` takes them."""
    constants = dict(module.named_buffers(remove_duplicate=False))
    return {
        name: tensor.detach()
        for name, tensor in module.state_dict().items()
        if name not in constants or name.rpartition(".")[2] in STATISTICS
    }


def _layer(module: nn.Module, name: str) -> _NormBase | None:
    found = dict(module.named_modules()).get(name)
    return found if isinstance(found, _NormBase) else None
