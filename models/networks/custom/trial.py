"""Trying out a user's own module: whether the task's seed decides its draws, and whether it may be narrowed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError, brief
from diastole.models.kernels import plain_kernels
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.alike import Levelled
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.custom.made import constants
from diastole.models.networks.custom.resize import RESIZED, half, narrow, regions
from diastole.models.networks.custom.sizes import sizes
from diastole.models.networks.custom.traced import Traced


def check_training(model: ModelConfig, make: Callable[[], nn.Module]) -> bool:
    """Return whether `forward` draws at random in training, beside the layers of `models/dropout.py`.

    Raises `ModelError` if it changes what is no part of the state, or leaves parameters alone.
    """
    module = make().train()
    before, known = torch.get_rng_state(), {name: tensor.clone() for name, tensor in constants(module).items()}
    with blamed(model, "in training"), torch.enable_grad():
        outputs = module(model.blank(2))
    after, used = constants(module), _leaves(outputs)
    for name, tensor in known.items():
        if name not in after or not torch.equal(tensor.nan_to_num(), after[name].nan_to_num()):
            raise ModelError(
                f"model custom: {model.factory} changes the tensor {name!r} in training, which is no parameter and "
                "would be averaged or overwritten silently; compute it in forward, or make it a parameter"
            )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in used:
            owner, _, own = name.rpartition(".")
            layer = module.get_submodule(owner)
            raise ModelError(
                f"model custom: {model.factory}: layer {owner!r} ({type(layer).__name__}) is not called in forward, or "
                f"what its {own} gives is not used; remove what does nothing, or freeze it (requires_grad_(False))"
            )
    return not torch.equal(before, torch.get_rng_state())


def _leaves(outputs: Tensor) -> set[int]:
    """Return the ids of the parameters that gradients of the outputs reach."""
    found, seen, todo = set[int](), set[object](), [outputs.grad_fn]
    while todo:
        step = todo.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            found.add(id(step.variable))
        todo += [following for following, _ in step.next_functions]
    return found


def compare(model: ModelConfig, make: Callable[[], nn.Module], traced: Traced) -> Traced:
    """Return what was found, with the numbers of the user's modules that are sizes.

    A narrow module must agree with the whole one whose dropped channels have zero weights. This trial finds a rule that
    is wrong, and a size that is written as a number: a dropped channel is zero in the whole module, so the two disagree
    only if channels are mixed or moved. It runs with the numbers as they are, and if they do not fit, with those
    changed that are as large as an axis. Raises `ModelError` if neither agrees.
    """
    first = _difference(model, make, traced)
    if not first:
        return traced
    guessed = sizes(make(), traced.layout, traced.sets, traced.rows, RESIZED)
    if guessed:
        changed = replace(traced, numbers=guessed)
        if not _difference(model, make, changed):
            return changed
    raise ModelError(f"model custom: {model.factory} cannot be narrowed: {first}")


def _difference(model: ModelConfig, make: Callable[[], nn.Module], traced: Traced) -> str:
    """Return why a narrow module does not agree with the whole one; empty if it does."""
    widths = half(traced, model.group)
    whole, part = make().eval(), make().eval()
    places = regions(whole, traced, widths)
    part = narrow(part, traced, widths)
    draws = torch.Generator().manual_seed(0)
    for name, parameter in whole.named_parameters():
        values = torch.randn(parameter.shape, generator=draws) / max(1, parameter.shape[1:].numel()) ** 0.5
        parameter.zero_()
        places[name].put_(parameter, places[name].take(values))
        part.get_parameter(name).copy_(places[name].take(values))
    x, level = model.drawn(2, draws), Levelled()
    with plain_kernels(), _recorded(whole) as expected, level:
        logits = whole(x)
    with plain_kernels(), _recorded(part) as seen, level.again():
        try:
            same = torch.allclose(part(x), logits, rtol=1e-2, atol=1e-3 * float(logits.abs().max() + 1))
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            return (
                f"behind layer {next(reversed(seen), 'none')!r}: {brief(error)}; sizes in forward must be read from "
                "tensors, not written as numbers"
            )
    if same:
        return ""
    return (
        f"{_first_difference(expected, seen)}, forward mixes or reorders channels by an operator that cannot be "
        "sliced; move it into the layers, or keep the channels"
    )


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of layers with parameters, by name, as they come."""
    given: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_hook(lambda layer, x, y, name=name: given.__setitem__(name, _tensor(y)))
    yield given


def _tensor(given: object) -> Tensor:
    """Return the first tensor that a layer gave; LSTM and attention give several."""
    found = given[0] if isinstance(given, tuple) else given
    return found if isinstance(found, Tensor) else torch.zeros(())


def _first_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    # Dropped channels are zero in the whole module, so that its sums are those over the kept ones.
    for name, tensor in expected.items():
        if name not in found or not torch.allclose(tensor.abs().sum(), found[name].abs().sum(), rtol=1e-2):
            return f"before layer {name!r}"
    return "behind the last layer"
