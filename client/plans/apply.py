"""Applying a plan to a module, and training under it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from diastole.client.kernels.dense import LEAST
from diastole.client.plans.fused import FUSED
from diastole.client.plans.layers import PlannedConv2d, PlannedDepthWise, PlannedGroupNorm, PlannedLinear
from diastole.client.plans.plan import Plan
from diastole.client.plans.pools import PlannedPool, is_two_by_two
from diastole.models.allocator import keep_pages
from diastole.models.networks.mobilenet import DepthWise


@runtime_checkable
class Laid(Protocol):
    """A module that has weights in parts, which are views of the whole ones."""

    def lay(self, memory: torch.memory_format) -> None:
        """Let the whole weights be in this memory format."""
        ...


def apply(module: nn.Module, plan: Plan) -> None:
    """Let a module compute as a plan says; its parameters keep their names, shapes and types."""
    if plan.pages:
        keep_pages()
    if plan.channels_last:
        _convolutions(module, plan)
    if plan.norms:
        for layer in module.modules():
            if type(layer) is nn.GroupNorm:
                layer.__class__ = PlannedGroupNorm
    for layer in module.modules():
        if plan.pools and type(layer) is nn.MaxPool2d and is_two_by_two(layer):
            layer.__class__ = PlannedPool
        if plan.dense and is_large(layer):
            layer.__class__ = PlannedLinear
        if plan.pools or plan.norms:
            layer.__class__ = FUSED.get(type(layer), type(layer))


def arrange(module: nn.Module) -> None:
    """Bring the weights of planned convolutions into the order in which they are used."""
    for layer in module.modules():
        if isinstance(layer, PlannedConv2d | PlannedDepthWise):
            weight = layer._parameters.get("weight")
            if weight is not None:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    for part in module.modules():
        if isinstance(part, Laid):
            part.lay(torch.channels_last)


@contextmanager
def running(plan: Plan, device: str = "cpu") -> Iterator[None]:
    """Run a block on the threads, and in the precision, of a plan. The earlier number of threads comes back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    # Not cached: a cast of weights would outlive the step that changes them.
    half = torch.autocast(device, torch.bfloat16, cache_enabled=False) if plan.precision == "bf16" else nullcontext()
    try:
        with half:
            yield
    finally:
        torch.set_num_threads(threads)


def is_convolution(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution that a plan may change."""
    if type(layer) is DepthWise:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.dilation == (1, 1)
    )


def is_large(layer: nn.Module) -> bool:
    """Return whether a layer is a dense one that a plan may change."""
    return type(layer) is nn.Linear and layer.in_features * layer.out_features >= LEAST


def _convolutions(module: nn.Module, plan: Plan) -> None:
    chosen = {layer.path: layer for layer in plan.layers}
    for path, layer in module.named_modules():
        if is_convolution(layer):
            layer.__class__ = PlannedDepthWise if type(layer) is DepthWise else PlannedConv2d
            layer.planned = chosen.get(path)
