"""Filling a module with the tensors of a state, where they are."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diastole.models.crossing import device_of
from diastole.models.networks.custom.made import move_constants


def load(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a module, which may be hollow, copies of the tensors of `state`, in place; it then is where they are."""
    copies = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    module.load_state_dict(copies, assign=True)
    if (device := device_of(state)).type != "cpu":
        move_constants(module, device)
    return module
