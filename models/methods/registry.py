"""The methods by name, baselines among them; other packages add methods by entry points."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from diastole.models.cost import Cost, measure
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.blame import blamed
from diastole.models.networks.family import network
from diastole.models.parts import train_only, trained
from diastole.models.spec import SubModelSpec, adapter, one_line
from diastole.models.state import State
from diastole.models.training import TrainConfig
from diastole.proto.registry import Registry

LONGEST_SPEC = 1 << 16
"""The most characters of a spec as JSON; the largest architectures here have some hundreds."""


TRICKS = ("balance", "clip", "schedule")
"""Keys of `[training]` that any method can have, and that a recipe may set; None in an experiment leaves it to that."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an experiment asks of its method, for the method's own rules.

    Attributes:
        training: how devices train.
        proxy: examples of the server's proxy set.
        labels: whether these examples have labels.
        server_epochs: passes over these examples in the server's own training after each round.
        optimiser: the name of the server's optimiser.

    """

    training: TrainConfig
    proxy: int
    labels: bool
    server_epochs: int
    optimiser: str


def no_rules(options: Any, conditions: Conditions) -> None:
    """Accept every experiment."""


def never(options: Any) -> bool:
    """Return False, whatever the options."""
    return False


def any_targets(options: Any) -> str:
    """Return nothing: most methods take any targets."""
    return ""


def no_files(options: Any) -> Mapping[str, Path]:
    """Return nothing: most methods start from one network, or from none."""
    return {}


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One way of making sub-models, as the registry knows it.

    Attributes:
        make: returns the method for a global model, the widths of the tiers, how devices train, and the options.
        module: returns the freshly initialised module of a sub-model; a device needs nothing else of a method.
        size: the class of a spec's `options`, a frozen dataclass that pydantic validates.
        source: the paper.
        idea: what a sub-model is, in a few words.
        options: the class of the method's options in an experiment, likewise; None for none.
        proxy: whether the method needs a proxy set.
        unlabelled: returns whether the method, with these options, can use a proxy set without labels: for its own
            work, and for the server's training unless `check` refuses that.
        recipe: what the paper trains with beside the method: keys of `[training]` and `[server]`, such as
            `training.clip`, that an experiment may leave to it.
        classes: returns what the method, with these options, needs one class an example for, in words; empty if it
            takes any targets.
        check: raises `SpecError` if the method, with its options, cannot be run under the conditions of an experiment.
        files: returns, from the options, the files of weights that parts of the global state start from, each by what
            the names of its tensors begin with there.
        scheduled: returns whether the method, with these options, depends on the number of the run's rounds, or on
            the share of them that is over: then the first rounds of a longer run are not those of a shorter one.
        baseline: what a baseline stands for, for tables and pictures; empty for a method.
        ignore_budgets: whether every device gets the largest size, even if it does not fit.
        each_width: whether the baseline is one federation for each tier's width, which only comparisons run.
        footnote: what readers of scores of its sizes below the whole must know, a sentence; empty for nothing.

    """

    make: Callable[[ModelConfig, Sequence[float], TrainConfig, Any], Method]
    module: Callable[[ModelConfig, SubModelSpec], nn.Module]
    size: type
    source: str = ""
    idea: str = ""
    options: type | None = None
    proxy: bool = False
    unlabelled: Callable[[Any], bool] = never
    recipe: Mapping[str, Any] = field(default_factory=dict)
    classes: Callable[[Any], str] = any_targets
    check: Callable[[Any, Conditions], None] = no_rules
    files: Callable[[Any], Mapping[str, Path]] = no_files
    scheduled: Callable[[Any], bool] = never
    baseline: str = ""
    ignore_budgets: bool = False
    each_width: bool = False
    footnote: str = ""


_HERE = "diastole.models.methods"
METHODS: Registry[MethodRow] = Registry(
    "method",
    {
        "diastole": f"{_HERE}.widths.diastole:ROW",
        "width": f"{_HERE}.widths.width:ROW",
        "conv": f"{_HERE}.fedconv.conv:ROW",
        "fjord": f"{_HERE}.widths.fjord:ROW",
        "fedrolex": f"{_HERE}.widths.fedrolex:ROW",
        "splitmix": f"{_HERE}.widths.splitmix:ROW",
        "snnet": f"{_HERE}.stitching.snnet:ROW",
        "snnetv2": f"{_HERE}.stitching.snnetv2:ROW",
        "fiarse": f"{_HERE}.importance.fiarse:ROW",
        "depthfl": f"{_HERE}.depths.depthfl:ROW",
        "inclusivefl": f"{_HERE}.depths.inclusivefl:ROW",
        "scalefl": f"{_HERE}.depths.scalefl:ROW",
        "nefl": f"{_HERE}.depths.nefl:ROW",
        "adaptivefl": f"{_HERE}.widths.adaptivefl:ROW",
        "ofa": f"{_HERE}.supernets.ofa:ROW",
        "superfednas": f"{_HERE}.supernets.superfednas:ROW",
        "deps": f"{_HERE}.supernets.deps:ROW",
        "fedavg": f"{_HERE}.baselines:FEDAVG",
        "exclusive": f"{_HERE}.baselines:EXCLUSIVE",
        "smallest": f"{_HERE}.baselines:SMALLEST",
        "proxy": f"{_HERE}.baselines:PROXY",
        "dedicated": f"{_HERE}.baselines:DEDICATED",
    },
    MethodRow,
    SpecError,
    {"heterofl": "width", "fedconv": "conv"},
)


def make_method(
    name: str,
    model: ModelConfig,
    widths: Sequence[float],
    training: TrainConfig,
    options: Mapping[str, Any] | None = None,
) -> Method:
    """Return a new method of `model` for tiers of the given widths.

    A tier of width w can afford what plain training of the model at that width costs; a method that does not slice
    widths offers sizes of about these costs.

    Raises `SpecError` for an unknown method, wrong options, or a width that the model cannot have.
    """
    return METHODS[name].make(model, widths, training, parse_options(name, options or {}))


def parse_options(name: str, options: Mapping[str, Any]) -> Any:
    """Return a method's options, checked; None for a method without any. Raises `SpecError`."""
    kind = METHODS[name].options
    if found := [key for key in options if key in TRICKS]:
        raise SpecError(f"options of method {name}: {found[0]}: is for every method, as training.{found[0]}")
    if kind is None:
        if options:
            raise SpecError(f"method {name} has no options, not {', '.join(options)}")
        return None
    try:
        return adapter(kind).validate_python(dict(options))
    except ValidationError as error:
        raise SpecError(f"options of method {name}: {one_line(error, adapter(kind).json_schema())}") from None


def build(model: ModelConfig, spec: SubModelSpec | None = None, part: str = "") -> nn.Module:
    """Return a freshly initialised module: the plain global model, or the sub-model that `spec` names.

    With `part`, no gradient reaches the rest of it. Raises `ModelError` if the configuration cannot be built,
    `SpecError` if the sub-model cannot, or has no such part.
    """
    with blamed(model):
        module = network(model) if spec is None else METHODS[spec.method].module(model, spec)
    if part:
        train_only(module, part)
    return module


def filled(model: ModelConfig, spec: SubModelSpec, state: State) -> nn.Module:
    """Return a sub-model on the processor that has the tensors of `state`, not copies. Raises what `build` raises."""
    module = build(model, spec)
    module.load_state_dict({name: tensor.detach().cpu() for name, tensor in state.items()}, assign=True)
    return module


@lru_cache(maxsize=1 << 12)
def cost_of(
    model: ModelConfig, spec: SubModelSpec, training: TrainConfig, recompute: bool = False, part: str = ""
) -> Cost:
    """Return what training a sub-model, or a part of it, costs, measured once a process. Raises what `build` raises.

    With `recompute`, activations inside of blocks are computed twice.
    """
    # How fast and for how long devices train is no cost of a step.
    alike = replace(training.told, epochs=1, learning_rate=1.0, schedule=None, fit="", augment=())
    return _cost_of(model, spec, alike, recompute, part)


@lru_cache(maxsize=1 << 12)
def _cost_of(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, recompute: bool, part: str) -> Cost:
    with hollow():
        module = build(model, spec, part)
    with blamed(model, "in a step that measures its costs"):
        cost = measure(module, model.input_shape, training, model.dtype, recompute, partial=bool(part))
    return replace(cost, whole=cost_of(model, spec, training).up) if part else cost


@lru_cache(maxsize=1 << 12)
def untrained(model: ModelConfig, spec: SubModelSpec, part: str = "") -> frozenset[str]:
    """Return the tensors of a sub-model that a device is sent, does not train, and does not send back."""
    with hollow():
        named = build(model, spec, part).named_parameters()
        return frozenset(name for name, parameter in named if not parameter.requires_grad)


@lru_cache(maxsize=1 << 12)
def has_part(model: ModelConfig, spec: SubModelSpec, part: str) -> bool:
    """Return whether a sub-model has a part that can be trained, and that is not all of it."""
    with hollow():
        module = build(model, spec)
    return bool(names := trained(module, part)) and names != trained(module, "")


def apart(model: ModelConfig, spec: SubModelSpec, state: State) -> tuple[State, State]:
    """Return what a device trains of a sub-model's state, and what it does not train; they travel apart."""
    still = untrained(model, spec)
    moving = {name: tensor for name, tensor in state.items() if name not in still}
    return moving, {name: tensor for name, tensor in state.items() if name in still}


class _Document(BaseModel):
    """A spec as JSON."""

    model_config = ConfigDict(extra="forbid")

    method: str
    label: str
    options: dict[str, Any] = {}


def read_spec(text: str) -> SubModelSpec:
    """Parse what `SubModelSpec.to_json` wrote. Raises `SpecError`."""
    if len(text) > LONGEST_SPEC:
        raise SpecError(f"sub-model spec of {len(text)} characters; at most {LONGEST_SPEC} are accepted")
    try:
        document = _Document.model_validate_json(text)
        options = adapter(METHODS[document.method].size).validate_python(document.options)
    except ValidationError as error:
        raise SpecError(f"sub-model spec {text[:200]!r}: {one_line(error)[:1000]}") from None
    return SubModelSpec(METHODS.name(document.method), document.label, options)
