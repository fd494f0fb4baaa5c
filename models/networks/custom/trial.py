"""Trying out a user's own module: whether the task's seed decides its draws, and whether it may be narrowed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError, brief
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.custom.resize import half, narrow, regions
from diastole.models.networks.custom.traced import Traced


def check_draws(model: ModelConfig, make: Callable[[], nn.Module]) -> None:
    """Raise `ModelError` if training draws from torch's global generator, which no task's seed decides about."""
    module = make().train()

    def check(place: str) -> None:
        if not torch.equal(before, torch.get_rng_state()):
            raise ModelError(
                f"model custom: {model.factory} draws random numbers of its own in training, {place}; expected the "
                "layers nn.Dropout, nn.Dropout1d, nn.Dropout2d and nn.Dropout3d, whose draws come from the task's seed"
            )

    for name, layer in module.named_modules():
        if not list(layer.children()):
            place = f"in or before layer {name!r} ({type(layer).__name__})"
            layer.register_forward_hook(lambda layer, x, y, place=place: check(place))
    before = torch.get_rng_state()
    with blamed(model, "in training"):
        module(model.blank(2))
    check("behind its last layer")


def compare(model: ModelConfig, make: Callable[[], nn.Module], traced: Traced) -> None:
    """Raise `ModelError` unless a narrow module agrees with the whole one whose dropped channels have zero weights.

    The dependency graph assumes that an operator which it does not know treats channels one by one. This trial finds an
    operator that does not: a dropped channel is zero in the whole module, so the two disagree only if channels are
    mixed or moved. LayerNorm is known to mix channels; in this trial it only scales and shifts, in both modules.
    """
    widths = half(traced, model.group)
    whole, part = make().eval(), make().eval()
    places = regions(whole, traced, widths)
    part = narrow(part, traced, widths)
    draws = torch.Generator().manual_seed(0)
    for name, parameter in whole.named_parameters():
        values = torch.randn(parameter.shape, generator=draws) / max(1, parameter[0].numel()) ** 0.5
        parameter.zero_()
        places[name].put_(parameter, places[name].take(values))
        part.get_parameter(name).copy_(places[name].take(values))
    x = torch.randn(2, *model.input_shape, generator=draws)
    if model.tokens:
        x = torch.randint(model.vocabulary, x.shape, generator=draws)
    with _recorded(whole) as expected:
        logits = whole(x)
    with _recorded(part) as seen:
        try:
            same = torch.allclose(part(x), logits, rtol=1e-2, atol=1e-3 * float(logits.abs().max() + 1))
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            raise ModelError(
                f"model custom: {model.factory} cannot be narrowed: behind layer {next(reversed(seen), 'none')!r}: "
                f"{brief(error)}; sizes in forward must be read from tensors, not written as numbers"
            ) from None
    if not same:
        raise ModelError(
            f"model custom: {model.factory} cannot be narrowed: {_first_difference(expected, seen)}, forward mixes or "
            "reorders channels by an operator that cannot be sliced; move it into the layers, or keep the channels"
        )


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of layers with parameters, by name, as they come; LayerNorm only scales and shifts."""
    given: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.LayerNorm):
            layer.forward = partial(_affine, layer)  # type: ignore[method-assign]
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_hook(lambda layer, x, y, name=name: given.__setitem__(name, y))
    yield given


def _affine(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return x if layer.weight is None else x * layer.weight + (0 if layer.bias is None else layer.bias)


def _first_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    # Dropped channels are zero in the whole module, so that its sums are those over the kept ones.
    for name, tensor in expected.items():
        if name not in found or not torch.allclose(tensor.abs().sum(), found[name].abs().sum(), rtol=1e-2):
            return f"before layer {name!r}"
    return "behind the last layer"
