"""Any module that a user brings: it is made by a function of the user's, and sliced by what `traced` finds in it.

If the user names its blocks, it is taken apart at them (`split`), and is then a network with stages like any other.

Importing a function runs its code. A process does so only if whoever started it has said so, with `allow` or the
environment variable `DIASTOLE_FACTORIES`: the name in a configuration may come from another machine.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from diastole.models.channels import Layout, select
from diastole.models.coordinates import Region
from diastole.models.dropout import replace_dropout
from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.checks import check_first_blocks
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.cuts import Cuts, cuts_of
from diastole.models.networks.custom.given import Given, given
from diastole.models.networks.custom.resize import Refused, refitted, resize
from diastole.models.networks.custom.split import Split, split
from diastole.models.networks.custom.traced import Traced, layers_of, trace
from diastole.models.networks.shape import Shape, scaled

VARIABLE = "DIASTOLE_FACTORIES"
_ALLOWED: set[str] = set()


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a user's module.

    Attributes:
        traced: what the axes of its parameters run over.
        cuts: where it is cut; None if no blocks are named.
        given: what each stage gives.

    """

    traced: Traced
    cuts: Cuts | None = None
    given: tuple[Given, ...] = ()


def allow(factory: str) -> None:
    """Let this process import and call `factory`, "package.module:function", if a model names it."""
    _ALLOWED.add(factory)


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the module cannot be made here, or not be sliced."""
    _checked(model)


def widths(model: ModelConfig) -> tuple[int, ...]:
    """Return the channels of each set that can be narrowed. Raises `ModelError`."""
    return tuple(_checked(model).traced.sets.values())


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over."""
    return _checked(model).traced.layout


def stages(model: ModelConfig) -> tuple[Given, ...]:
    """Return what each stage gives. Raises `ModelError`."""
    return _checked(model).given


def paths(model: ModelConfig) -> dict[str, str]:
    """Return, for each global tensor, its path in the user's own module, for which there may be other uses."""
    found, module = _checked(model), _call(model)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    whole = module if found.cuts is None else split(found.cuts, module)
    return {name: names[id(parameter)] for name, parameter in whole.named_parameters()}


def shapes(model: ModelConfig, shape: Shape) -> list[tuple[int, ...]]:
    """Return the shape of what each stage gives for one example, in a network of the given shape."""
    found = _checked(model)
    widths = dict(zip(found.traced.sets, shape.widths, strict=True))
    return [each.shape_at(widths) for each in found.given[: shape.stages]]


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return the user's module with the first channels of every set, and of the named blocks those that are kept.

    Without the last stages, layers behind the blocks take what the last stage that is kept gives; where they cannot,
    `leave` says so. Raises `SpecError` if there is no such shape.
    """
    found = _checked(model)
    module, full = _made(model, found.cuts), tuple(found.traced.sets.values())
    if len(shape.widths) != len(full) or (shape.blocks and not isinstance(module, Split)):
        raise SpecError(f"model custom: {model.factory} has no stages or blocks to leave out; it can only be narrowed")
    if shape.widths != full:
        module = _narrow(module, found.traced, shape)
    if isinstance(module, Split) and shape.blocks:
        check_first_blocks(shape)
        module.keep(shape.blocks)
        if len(shape.blocks) < len(found.given):
            _refit(model, module, shapes(model, replace(shape, sets=True))[-1])
    return module


def _made(model: ModelConfig, cuts: Cuts | None) -> nn.Module:
    module = _call(model)
    return module if cuts is None else split(cuts, module)


def _refit(model: ModelConfig, module: Split, shape: Sequence[int]) -> None:
    """Let what runs behind the blocks take examples of another shape; if it cannot, calling it says why."""
    leave = nn.Sequential(module.behind, module.classifier)
    try:
        refitted(leave, shape)
    except ModelError as error:
        path = model.stages[len(module.stages) - 1][-1]
        module.behind = Refused(f"model custom: {model.factory} cannot end behind block {path!r}: {error}")


def _checked(model: ModelConfig) -> _Found:
    if not model.factory:
        raise ModelError('model custom: factory is missing; expected "package.module:function"')
    if not model.input_shape or min(model.input_shape) < 1:
        raise ModelError(f"model custom: input_shape {list(model.input_shape)}; expected sizes of at least 1")
    allowed = {*_ALLOWED, *os.environ.get(VARIABLE, "").replace(",", " ").split()}
    if model.factory not in allowed:
        raise ModelError(
            f"model custom: {model.factory} would be imported, which nobody on this machine has allowed; if you trust "
            f"it, say --allow-factory {model.factory}, or set {VARIABLE}"
        )
    return _traced(model)


@cache
def _traced(model: ModelConfig) -> _Found:
    """Trace the user's module once a process; no random number is drawn from anybody's generator."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = _call(model).eval()
        x = torch.zeros(2, *model.input_shape)
        try:
            logits = module(x)
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            raise ModelError(f"model custom: {model.factory} on {list(x.shape)}: {_brief(error)}") from None
        if not isinstance(logits, Tensor) or logits.shape != (2, model.classes):
            what = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"model custom: {model.factory} gives {what}; expected logits [2, {model.classes}]")
        cuts = None
        if model.stages:
            layers_of(module)
            cuts = cuts_of(module, model.stages)
            module = split(cuts, module).eval()
        found = _Found(trace(module, model.input_shape, model.group), cuts)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        _check_draws(model, found)
        _compare(model, found)
    if cuts is None:
        return found
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        whole, half = split(cuts, _call(model)), split(cuts, _call(model))
        _narrow(half, found.traced, _half(model, found.traced))
        traced, outputs = given(whole.eval(), half.eval(), model)
    return _Found(traced, cuts, outputs)


def _half(model: ModelConfig, traced: Traced) -> Shape:
    return Shape(tuple(scaled(width, 0.5, model.group) for width in traced.sets.values()))


def _call(model: ModelConfig) -> nn.Module:
    """Return what the user's function makes. Raises `ModelError`."""
    place, _, name = model.factory.partition(":")
    try:
        made = getattr(importlib.import_module(place), name)()
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise ModelError(f"model custom: {model.factory}: {_brief(error)}") from None
    if not isinstance(made, nn.Module):
        raise ModelError(f"model custom: {model.factory} returns a {type(made).__name__}; expected a torch.nn.Module")
    try:
        replace_dropout(made)
    except ModelError as error:
        raise ModelError(f"model custom: {model.factory}: {error}") from None
    return made


def _narrow(module: nn.Module, traced: Traced, shape: Shape) -> nn.Module:
    """Leave, in place, the first channels of every set."""
    for name, region in regions(module, traced, shape).items():
        owner, _, own = name.rpartition(".")
        parameter = module.get_parameter(name)
        kept = nn.Parameter(region.take(parameter.detach()), parameter.requires_grad)
        layer = module.get_submodule(owner)
        setattr(layer, own, kept)
        if own == "weight":
            resize(layer, kept.shape)
    return module


def regions(module: nn.Module, traced: Traced, shape: Shape) -> dict[str, Region]:
    """Return where the tensors of a narrow module lie in the whole one's."""
    kept = {name: slice(0, width) for name, width in zip(traced.sets, shape.widths, strict=True)}
    return select(traced.layout, {name: parameter.shape for name, parameter in module.named_parameters()}, kept)


def _check_draws(model: ModelConfig, found: _Found) -> None:
    """Raise `ModelError` if training draws from torch's global generator, which no task's seed decides about."""
    module = _made(model, found.cuts).train()

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
    try:
        module(torch.zeros(2, *model.input_shape))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        raise ModelError(f"model custom: {model.factory} in training: {_brief(error)}") from None
    check("behind its last layer")


def _compare(model: ModelConfig, found: _Found) -> None:
    """Raise `ModelError` unless a narrow module does what the whole one does with zeros for the dropped channels.

    The graph takes an operator that it does not know for one that treats channels one by one. Weights that are zero
    show whether that is so: a channel then contributes nothing, whatever is made of it. LayerNorm does mix
    channels, and is left out on both sides.
    """
    traced, shape = found.traced, _half(model, found.traced)
    whole, part = _made(model, found.cuts).eval(), _made(model, found.cuts).eval()
    places = regions(whole, traced, shape)
    part = _narrow(part, traced, shape)
    draws = torch.Generator().manual_seed(0)
    for name, parameter in whole.named_parameters():
        values = torch.randn(parameter.shape, generator=draws) / max(1, parameter[0].numel()) ** 0.5
        parameter.zero_()
        places[name].put_(parameter, places[name].take(values))
        part.get_parameter(name).copy_(places[name].take(values))
    x = torch.randn(2, *model.input_shape, generator=draws)
    with _recorded(whole) as expected:
        logits = whole(x)
    with _recorded(part) as seen:
        try:
            same = torch.allclose(part(x), logits, rtol=1e-2, atol=1e-3 * float(logits.abs().max() + 1))
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            raise ModelError(
                f"model custom: {model.factory} cannot be narrowed: behind layer {next(reversed(seen), 'none')!r}: "
                f"{_brief(error)}; sizes in forward must be read from tensors, not written as numbers"
            ) from None
    if not same:
        raise ModelError(
            f"model custom: {model.factory} cannot be narrowed: {_first_difference(expected, seen)}, forward mixes or "
            "reorders channels by an operator that cannot be sliced; move it into the layers, or keep the channels"
        )


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield what each layer with parameters gives, by name, as it comes; LayerNorm only scales and shifts."""
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
    # Channels that are dropped are zero in the whole module, so that sums are those over the others.
    for name, tensor in expected.items():
        if name not in found or not torch.allclose(tensor.abs().sum(), found[name].abs().sum(), rtol=1e-2):
            return f"before layer {name!r}"
    return "behind the last layer"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
