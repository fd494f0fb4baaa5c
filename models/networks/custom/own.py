"""Any module of a user's own: the user's function makes it, and it is sliced by what `traced` finds in it.

If the user names its blocks, the module is taken apart at them (`split`), and is then a network with stages like any
other.

A process imports the function only if the person who started it has allowed it (`models/allowed.py`).
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from diastole.models.allowed import GIVEN, is_allowed
from diastole.models.allowed import VARIABLE as VARIABLE
from diastole.models.allowed import allow as allow
from diastole.models.allowed import is_given as is_given
from diastole.models.channels import Layout
from diastole.models.draws import seed_draws
from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.checks import check_first_blocks
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.custom.cuts import Cuts, cuts_of
from diastole.models.networks.custom.given import Given, given
from diastole.models.networks.custom.made import hollowed, prepare, tied
from diastole.models.networks.custom.mixing import check_mixing
from diastole.models.networks.custom.resize import Refused, half, narrow, refitted
from diastole.models.networks.custom.split import Split, split
from diastole.models.networks.custom.traced import CONVOLUTIONS, Traced, trace
from diastole.models.networks.custom.trial import check_training, compare
from diastole.models.networks.freeze import freeze
from diastole.models.networks.registry import Map, NetworkRow
from diastole.models.networks.shape import Shape, first_blocks
from diastole.models.recalibrate import STATISTICS, has_statistics, mark_mixing

_GIVEN: dict[str, nn.Module] = {}


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a user's module.

    Attributes:
        traced: what the axes of its parameters run over.
        cuts: where it is cut; None if no blocks are named.
        given: each stage's output.
        mixing: whether examples of a batch see each other in training.
        draws: whether `forward` itself draws at random in training.

    """

    traced: Traced
    cuts: Cuts | None = None
    given: tuple[Given, ...] = ()
    mixing: bool = False
    draws: bool = False


def register(module: nn.Module) -> str:
    """Keep a copy of a module for this process; return the name of a factory that copies it, weights included.

    The name tells it from every other module: it has a digest of its structure and its weights.
    """
    total = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    factory = f"{GIVEN}:{type(module).__name__}_{total.hexdigest()[:16]}"
    _GIVEN[factory] = deepcopy(module).cpu()
    allow(factory)
    return factory


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the module cannot be made here, or cannot be sliced."""
    _checked(model)


def kind(model: ModelConfig) -> type[nn.Module]:
    """Return the class of the user's own module. Raises `ModelError`."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(_call(model))


def whole(model: ModelConfig) -> Shape:
    """Return the channels of each set that can be narrowed, and the named blocks. Raises `ModelError`."""
    counts = [len(stage) for stage in model.stages]
    return Shape(tuple(_checked(model).traced.sets.values()), first_blocks(counts), sets=True)


def depth(model: ModelConfig) -> int:
    """Return the number of stages. Raises `ModelError` if nobody has named their blocks."""
    if not model.stages:
        raise ModelError(
            f"model custom: {model.factory} has no depth to cut, because nobody has named its blocks; do so in "
            "model.stages, or use a method that only slices widths"
        )
    return len(model.stages)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over."""
    return _checked(model).traced.layout


def channels(model: ModelConfig) -> int:
    """Return the axis of the channels in the outputs of stages. Raises `ModelError` if stages differ in it."""
    axes = {each.at for each in _checked(model).given}
    if len(axes) > 1:
        raise ModelError(f"model custom: channels are on axes {sorted(axes)} of what stages give; expected one")
    return next(iter(axes), 1)


def maps(model: ModelConfig, shape: Shape) -> list[Map]:
    """Return each stage's output in a network of the given shape."""
    return [
        Map(size[each.place], len(size) - 1, each.at, each.runs)
        for each, size in zip(_checked(model).given, _shapes(model, shape), strict=False)
    ]


def classifier(model: ModelConfig) -> str:
    """Return the path of the linear layer or convolution that gives the outputs, in training and in evaluation.

    Empty if something else does.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        module, x = make(model, whole(model)), model.blank(2)
        paths = {_last(module.train(training), x) for training in (True, False)}
    return paths.pop() if len(paths) == 1 else ""


def made(model: ModelConfig) -> nn.Module:
    """Return the user's own module as the user's function makes it. Raises `ModelError`."""
    _checked(model)
    return _call(model)


def paths(model: ModelConfig) -> dict[str, str]:
    """Return the path of each global tensor in the user's own module, which may have uses elsewhere."""
    module, whole = _both(model)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {name: names[id(parameter)] for name, parameter in whole.named_parameters()}


def statistics_paths(model: ModelConfig) -> dict[str, str]:
    """Return the path, in the user's own module, of each tensor of statistics that `recalibrate` gives."""
    module, whole = _both(model)
    names = {id(layer): name for name, layer in module.named_modules()}
    layers = [(name, names[id(layer)]) for name, layer in whole.named_modules() if has_statistics(layer)]
    return {f"{name}.{kind}": f"{own}.{kind}" for name, own in layers for kind in STATISTICS}


def _both(model: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Return the user's own module, and the same one as the global model has it."""
    found, module = _checked(model), _call(model)
    return module, module if found.cuts is None else split(found.cuts, module)


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return the user's module with the first channels of every set and the named blocks that are kept.

    Without the last stages, the layers after the blocks take the output of the last kept stage. If they cannot, `leave`
    raises `ModelError`. Raises `SpecError` if there is no such shape.
    """
    found = _checked(model)
    module, full = _made(model, found.cuts), tuple(found.traced.sets.values())
    if len(shape.widths) != len(full) or (shape.blocks and not isinstance(module, Split)):
        raise SpecError(f"model custom: {model.factory} has no stages or blocks to leave out; it can only be narrowed")
    if found.mixing:
        mark_mixing(module)
    if found.draws:
        _seed(module)
    if shape.widths != full:
        module = narrow(module, found.traced, shape.widths)
    if isinstance(module, Split) and shape.blocks:
        check_first_blocks(shape)
        module.keep(shape.blocks)
        if len(shape.blocks) < len(found.given):
            _refit(model, module, _shapes(model, replace(shape, sets=True))[-1])
    return module


def _shapes(model: ModelConfig, shape: Shape) -> list[tuple[int, ...]]:
    """Return the shape of each stage's output for one example, in a network of the given shape."""
    found = _checked(model)
    widths = dict(zip(found.traced.sets, shape.widths, strict=True))
    return [each.shape_at(widths) for each in found.given[: shape.stages]]


def _made(model: ModelConfig, cuts: Cuts | None) -> nn.Module:
    module = _call(model)
    return module if cuts is None else split(cuts, module)


def _drawing(model: ModelConfig, cuts: Cuts | None, draws: bool) -> nn.Module:
    """Return the user's module; what it draws for itself is the same every time."""
    module = _made(model, cuts)
    if draws:
        _seed(module)
    return module


def _seed(module: nn.Module) -> None:
    """Seed what a module draws for itself; the parts of one that is cut run on their own."""
    parts = [module]
    if isinstance(module, Split):
        parts = [module.entry, *(block for stage in module.stages for block in stage.children()), module.behind]
    for part in parts:
        seed_draws(part)


def _refit(model: ModelConfig, module: Split, shape: Sequence[int]) -> None:
    """Let what runs after the blocks take inputs of another shape; if it cannot, a call of it raises the reason."""
    leave = nn.Sequential(module.behind, module.classifier)
    try:
        refitted(leave, shape, model.gives)
    except ModelError as error:
        path = model.stages[len(module.stages) - 1][-1]
        module.behind = Refused(f"model custom: {model.factory} cannot end behind block {path!r}: {error}")


def _checked(model: ModelConfig) -> _Found:
    if not model.factory:
        raise ModelError('model custom: factory is missing; expected "package.module:function"')
    if not model.input_shape or min(model.input_shape) < 1:
        raise ModelError(f"model custom: input_shape {list(model.input_shape)}; expected sizes of at least 1")
    if not is_allowed(model.factory):
        raise ModelError(
            f"model custom: {model.factory} would be imported, which nobody on this machine has allowed; if you trust "
            f"it, say --allow-factory {model.factory}, or set {VARIABLE}"
        )
    return _traced(model)


@cache
def _traced(model: ModelConfig) -> _Found:
    """Trace the user's module once a process; the random generators of the caller stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        module, x = _call(model).eval(), model.blank(2)
        tables = any(isinstance(layer, nn.Embedding) for layer in module.modules()) and not model.tokens
        hint = "; set model.vocabulary if they are tokens" if tables else ""
        with blamed(model, f"on {list(x.shape)}, numbers{hint}" if hint else f"on {list(x.shape)}"):
            outputs = module(x)
        if not isinstance(outputs, Tensor) or outputs.shape not in {
            (2, *model.gives),
            *([(2,)] * (model.gives == (1,))),
        }:
            what = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ModelError(f"model custom: {model.factory} gives {what}; expected {[2, *model.gives]}")
        # Another one: the first may keep what it has computed for the next time.
        module, cuts = _call(model).eval(), None
        if model.stages:
            for other, first in tied(module).items():
                raise ModelError(
                    f"stages: {first!r} and {other!r} are one parameter; a module that is cut in depth needs two"
                )
            cuts = cuts_of(module, model.stages)
            module = split(cuts, module).eval()
        make_whole = partial(_made, model, cuts)
        with blamed(model, "followed operator by operator"):
            traced = trace(module, x, model.group)
        draws = check_training(model, make_whole)
        found = _Found(
            _compared(model, make_whole, traced),
            cuts,
            (),
            check_mixing(model, partial(_drawing, model, cuts, draws)),
            draws,
        )
        if cuts is None:
            return found
        full, part = split(cuts, _call(model)), split(cuts, _call(model))
        narrow(part, found.traced, half(found.traced, model.group))
        return replace(found, given=given(full.eval(), part.eval(), model, found.traced.apart))


def _compared(model: ModelConfig, make: Callable[[], nn.Module], traced: Traced) -> Traced:
    """Return what was found, if a narrow module agrees with the whole one; with all heads, if it does so only then."""
    try:
        return compare(model, make, traced)
    except ModelError as error:
        if not traced.rows:
            raise
        try:
            return compare(model, make, trace(make().eval(), model.blank(2), model.group, apart=True))
        except ModelError:
            raise error from None


def _call(model: ModelConfig) -> nn.Module:
    """Return what the user's function makes. Raises `ModelError`."""
    if torch.get_default_device().type == "meta":
        return deepcopy(_hollow(model))
    place, _, name = model.factory.partition(":")
    with blamed(model):
        if model.factory in _GIVEN:
            made = deepcopy(_GIVEN[model.factory]).to(torch.get_default_device())
        else:
            made = getattr(importlib.import_module(place), name)()
    if not isinstance(made, nn.Module):
        raise ModelError(f"model custom: {model.factory} returns a {type(made).__name__}; expected a torch.nn.Module")
    try:
        prepare(made)
    except ModelError as error:
        raise ModelError(f"model custom: {model.factory}: {error}") from None
    freeze(made, model.frozen)
    return made


@cache
def _hollow(model: ModelConfig) -> nn.Module:
    """Return the user's module without values; its constants have theirs, and no code of the user's runs on nothing."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        return hollowed(_call(model))


def _last(module: nn.Module, x: Tensor) -> str:
    """Return the path of the layer whose output a module returns, empty if it returns something else."""
    given: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, x, y, name=name: given.__setitem__(name, y))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and not layer.transposed)
    ]
    outputs = module(x)
    for hook in hooks:
        hook.remove()
    return next((name for name, y in given.items() if y is outputs), "")


ROW = NetworkRow(
    check,
    make,
    layout,
    whole=whole,
    depth=depth,
    channels=channels,
    maps=maps,
    classifier=classifier,
    dense=True,
    skippable=r"^stages\.\d+\.[1-9]\d*\.",
)
