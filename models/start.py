"""A start from given weights: where the tensors of a plain network lie in the global state of a method."""

from collections.abc import Mapping
from functools import cache

import torch

from diastole.models.channels import nested
from diastole.models.coordinates import Region
from diastole.models.errors import ModelError
from diastole.models.hollow import hollow
from diastole.models.method import Method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import layout, network


@cache
def plain_shapes(model: ModelConfig) -> Mapping[str, torch.Size]:
    """Return the shapes of the plain global network's parameters. Raises `ModelError`."""
    with hollow():
        return {name: parameter.shape for name, parameter in network(model).named_parameters()}


def paths(model: ModelConfig) -> Mapping[str, str]:
    """Return each plain tensor's name as users know it: in a user's own module, the name there."""
    return custom.paths(model) if model.name == "custom" else {name: name for name in plain_shapes(model)}


@cache
def frozen(model: ModelConfig) -> frozenset[str]:
    """Return the names of the plain global network's parameters that nobody trains. Raises `ModelError`."""
    with hollow():
        return frozenset(name for name, p in network(model).named_parameters() if not p.requires_grad)


def held(model: ModelConfig, method: Method) -> frozenset[str]:
    """Return the names of the global tensors that nobody trains, neither devices nor the server.

    Raises `SpecError` if there are any in the plain network and the method cannot tell where they lie.
    """
    still = frozen(model)
    return frozenset(name for name, slot in method.origins().items() if slot.source in still) if still else still


def inside(model: ModelConfig, shapes: Mapping[str, torch.Size]) -> dict[str, Region]:
    """Return where the tensors of a narrower or shallower network lie in the plain one: the first channels.

    Raises `ModelError` for a tensor that the plain network does not have.
    """
    plain = plain_shapes(model)
    if unknown := [name for name in shapes if name not in plain]:
        raise ModelError(f"tensor {unknown[0]!r} is none of the plain network's")
    return nested(layout(model), plain, shapes)
