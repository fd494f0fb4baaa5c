"""Families of networks by name: what a method needs to know of each, and building one at any size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from diastole.models.channels import Layout
from diastole.models.errors import ModelError
from diastole.models.networks import cnn, mobilenet, resnet, simplecnn, transformer, vit
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.shape import Shape, whole
from diastole.models.networks.staged import Network
from diastole.models.state import State, state_of


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of network.

    Attributes:
        check: raises `ModelError` if a configuration cannot be built.
        make: builds the module at a shape.
        layout: which channels each axis of each parameter runs over.
        channels: the axis of the channels in what stages take and give.

    """

    check: Callable[[ModelConfig], None]
    make: Callable[[ModelConfig, Shape], nn.Module]
    layout: Callable[[ModelConfig], Layout]
    channels: int = 1


FAMILIES: Mapping[str, Family] = {
    "cnn": Family(cnn.check, cnn.make, cnn.layout),
    "simple-cnn": Family(simplecnn.check, simplecnn.make, simplecnn.layout),
    "resnet": Family(resnet.check, resnet.make, resnet.layout),
    "vit": Family(vit.check, vit.make, vit.layout, channels=-1),
    "transformer": Family(transformer.check, transformer.make, transformer.layout, channels=-1),
    "custom": Family(custom.check, custom.make, custom.layout),
    "mobilenet": Family(mobilenet.check, mobilenet.make, mobilenet.layout),
}


def network(model: ModelConfig, shape: Shape | None = None) -> nn.Module:
    """Return a freshly initialised network: the global model, or one of another shape.

    Raises `ModelError` if the configuration cannot be built.
    """
    family = FAMILIES[model.name]
    family.check(model)
    return family.make(model, shape or whole(model))


def parts(module: nn.Module) -> Network:
    """Return the module as one that can be taken apart: a `Network`, or a user's own that has the same.

    Raises `ModelError` if it has no stages.
    """
    if not all(hasattr(module, name) for name in ("stages", "enter", "leave")):
        raise ModelError(
            f"{type(module).__name__} has no stages, enter and leave, so it cannot be cut in depth; "
            "a custom model gets them by naming its blocks in model.stages"
        )
    return cast(Network, module)


def channels(model: ModelConfig) -> int:
    """Return the axis of the channels in what stages take and give. Raises `ModelError` if they differ in it."""
    axes = {each.at for each in custom.stages(model)} if model.name == "custom" else {FAMILIES[model.name].channels}
    if len(axes) > 1:
        raise ModelError(f"model {model.name}: channels are on axes {sorted(axes)} of what stages give; expected one")
    return next(iter(axes), FAMILIES[model.name].channels)


def layout(model: ModelConfig) -> Layout:
    """Return which channels each axis of each parameter of the global model runs over. Raises `ModelError`."""
    family = FAMILIES[model.name]
    family.check(model)
    return family.layout(model)


@cache
def classifier(model: ModelConfig) -> str:
    """Return the path of the linear layer that gives a network's logits, empty if a custom one's are not a layer's."""
    if model.name != "custom":
        return "classifier"
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        module, x = network(model), torch.zeros(2, *model.input_shape)
        paths = {_last(module.train(training), x) for training in (True, False)}
    return paths.pop() if len(paths) == 1 else ""


def initial_state(model: ModelConfig, seed: int) -> State:
    """Return the parameters of a global model initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return state_of(network(model))


def _last(module: nn.Module, x: Tensor) -> str:
    """Return the path of the linear layer that gives what a module returns, empty if something else does."""
    given: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, x, y, name=name: given.__setitem__(name, y))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    logits = module(x)
    for hook in hooks:
        hook.remove()
    return next((name for name, y in given.items() if y is logits), "")
