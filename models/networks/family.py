"""What methods ask of a network, given its configuration: its module at any shape, its stages and its channels."""

from dataclasses import replace
from functools import cache
from typing import cast

import torch
from torch import nn

from diastole.models.channels import Layout
from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.checks import check_shape
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.freeze import freeze
from diastole.models.networks.registry import NETWORKS, Map
from diastole.models.networks.shape import Shape, scaled
from diastole.models.networks.staged import Network
from diastole.models.recalibrate import keep_no_statistics
from diastole.models.state import State, state_of


def network(model: ModelConfig, shape: Shape | None = None) -> nn.Module:
    """Return a freshly initialised network: the global model, or one of another shape.

    Raises `ModelError` if the configuration cannot be built, `SpecError` if the shape cannot.
    """
    full = whole(model)
    if shape is not None:
        check_shape(model, shape, full)
    made = NETWORKS[model.name].make(model, shape or full)
    if model.frozen and model.name != "custom":
        freeze(made, model.frozen)
    keep_no_statistics(made)
    return made


def whole(model: ModelConfig) -> Shape:
    """Return the shape of the global model. Raises `ModelError` if it cannot be built."""
    row = NETWORKS[model.name]
    if model.outputs and not row.dense:
        raise ModelError(
            f"model {model.name} gives [{model.classes}] for an example; {list(model.outputs)} is needed, which a "
            '"custom" model can give'
        )
    row.check(model)
    return row.whole(model)


def narrowed(model: ModelConfig, ratio: float) -> Shape:
    """Return the global model's shape at `ratio` of its channels.

    Raises `SpecError` if that leaves less than one normalisation group of the narrowest stage.
    """
    full = whole(model)
    narrowest = min(full.widths)
    if narrowest * ratio < model.group / 2:
        raise SpecError(
            f"width {ratio:g} leaves less than one group of {model.group} channels of the narrowest layer "
            f"({narrowest}); it must be at least {model.group / 2 / narrowest:g}"
        )
    return replace(full, widths=tuple(scaled(width, ratio, model.group, model.block) for width in full.widths))


def depth(model: ModelConfig) -> int:
    """Return the number of stages of the global model. Raises `ModelError` if it has none to leave out."""
    return NETWORKS[model.name].depth(model)


def parts(module: nn.Module) -> Network:
    """Return a module as a `Network`, which can be taken apart; a user's own module may have the same attributes.

    Raises `ModelError` if it has no stages.
    """
    if not all(hasattr(module, name) for name in ("stages", "enter", "leave")):
        raise ModelError(
            f"{type(module).__name__} has no stages, enter and leave, so it cannot be cut in depth; "
            "a custom model gets them by naming its blocks in model.stages"
        )
    return cast(Network, module)


def maps(model: ModelConfig, shape: Shape) -> list[Map]:
    """Return each stage's output in a network of this shape. Raises `ModelError` if no exit can be put there."""
    return NETWORKS[model.name].maps(model, shape)


def channels(model: ModelConfig) -> int:
    """Return the axis of the channels in inputs and outputs of stages. Raises `ModelError` if stages differ in it."""
    return NETWORKS[model.name].channels(model)


def layout(model: ModelConfig) -> Layout:
    """Return which channels each axis of each parameter of the global model runs over. Raises `ModelError`."""
    row = NETWORKS[model.name]
    row.check(model)
    return row.layout(model)


@cache
def classifier(model: ModelConfig) -> str:
    """Return the path of the layer that gives a network's outputs, empty if something else does."""
    return NETWORKS[model.name].classifier(model)


def initial_state(model: ModelConfig, seed: int) -> State:
    """Return the parameters of a global model initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return state_of(network(model))
