"""InclusiveFL: the first layers, and momentum distillation between sizes (Liu et al., KDD 2022).

What differs from the paper and the authors' code, and why:

* Layers are residual blocks, or stages in a network without blocks. The paper's transformer layers are all alike; here
  two layers correspond only if their tensors have the same names and shapes. Of the layers that the paper averages, the
  first is at the same place in the network, so there is always one; in a residual network there are more within a
  stage.
* Each size also owns what its network has between the last layer and the classifier, such as a transformer's norm.
* The mean over those layers is a mean; in the code each layer overwrites the one before.
* Devices send trained weights, not gradients, and the server's optimiser is the run's own for every size.
* Each tier gets the size with the most layers within its limits.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.coordinates import Contribution, Region, Slots, in_place
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Weight
from diastole.models.methods.bases.bounds import Blocks, Count
from diastole.models.methods.bases.budgets import best, tier_costs
from diastole.models.methods.bases.persize import PerSize
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import depth, network, parts, whole
from diastole.models.proxy import Proxy
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.start import plain_shapes
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class InclusiveFLConfig:
    """How larger sub-models teach smaller ones.

    Attributes:
        momentum: share of the next larger size's mean update in the update of a size's last layer (beta); 0 for none.

    """

    momentum: float = Field(default=0.2, ge=0, le=1)


@validated(frozen=True, slots=True, config=STRICT)
class InclusiveFLSize:
    """The first layers of the global model; with neither attribute, all of them.

    Attributes:
        stages: how many, in a network without blocks; 0 for all.
        blocks: of each stage that is kept, in a network with them.

    """

    stages: Count = 0
    blocks: Blocks = ()


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the first layers of the global model, with a classifier of their own. Raises `SpecError`."""
    size: InclusiveFLSize = spec.options
    full = whole(model)
    count = size.stages or len(size.blocks) or depth(model)
    if count > depth(model):
        raise SpecError(f"stages {count}: model {model.name} has {depth(model)}")
    first = full.first(count)
    return network(model, replace(first, blocks=size.blocks or first.blocks))


def spec_of(size: InclusiveFLSize) -> SubModelSpec:
    """Return the spec of some of the first layers."""
    return labelled("inclusivefl", size, stages=size.stages, blocks=size.blocks)


def layers(spec: SubModelSpec, model: ModelConfig) -> list[str]:
    """Return, for each layer of a sub-model, first to last, what the names of its tensors begin with."""
    size: InclusiveFLSize = spec.options
    blocks = size.blocks or whole(model).blocks
    if blocks:
        return [f"stages.{stage}.{block}." for stage, kept in enumerate(blocks) for block in kept]
    return [f"stages.{stage}." for stage in range(size.stages or depth(model))]


def behind(model: ModelConfig) -> list[str]:
    """Return what the names of the tensors after all layers begin with: the classifier's, and those before it."""
    with hollow():
        names = [name for name, _ in parts(network(model)).named_children()]
    return [f"{name}." for name in names[names.index("stages") + 1 :]]


def depths(model: ModelConfig) -> list[SubModelSpec]:
    """Return every size there could be: the first 1, 2, ... layers, and all of them."""
    full = whole(model).blocks
    if not full:
        sizes = [InclusiveFLSize(stages=count) for count in range(1, depth(model))]
    else:
        sizes = [
            InclusiveFLSize(blocks=(*full[:stage], tuple(range(count))))
            for stage, every in enumerate(full)
            for count in range(1, len(every) + 1)
        ][:-1]
    return [spec_of(size) for size in (*sizes, InclusiveFLSize())]


class InclusiveFLMethod(PerSize):
    """Sub-models are the first layers; each size owns its last layer and what follows, and shares the others.

    The update of a size's last layer is mixed with a mean update of the next larger size: that of its layers from this
    layer on.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: InclusiveFLConfig | None = None,
    ) -> None:
        *others, _ = tier_costs(model, widths, training)
        chains = [[spec] for spec in depths(model)]
        specs = [best(chains, lambda spec: cost_of(model, spec, training), limit) for limit in others]

        ends = behind(model)

        def own(spec: SubModelSpec, name: str) -> bool:
            # What runs after the layers, such as a transformer's last norm, is trained to read one particular layer.
            return name.startswith((layers(spec, model)[-1], *ends))

        super().__init__(model, specs, spec_of(InclusiveFLSize()), training, own)
        self._momentum = (config or InclusiveFLConfig()).momentum
        self._taught: dict[SubModelSpec, State] = {}

    def _origins(self, spec: SubModelSpec) -> Slots:
        """Return the counterparts of a size's tensors; one that reads other channels than the plain one's has none."""
        plain, shapes = plain_shapes(self._model), self._shapes[spec].items()
        return in_place({name: Region.prefix(shape) for name, shape in shapes if shape == plain[name]})

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state and forget the lessons of the round before."""
        self._taught = {}
        return super().prepare(state, proxy, moment)

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state."""
        self.prepare(state, proxy, moment)

    def needs_all(self, moment: Moment) -> bool:
        """Return True: a size's last layer learns from the mean over all devices of the next larger size."""
        return True

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Weigh each update by its examples, and compute what each size's last layer learns from the next size."""
        everyone = list(updates)
        self._taught = {}
        for small, large in pairwise(self.sizes):
            mine = [update for update in everyone if update.spec == large]
            if mine and self._momentum:
                self._taught[small] = self._lesson(small, large, self._mean_change(large, mine))
        yield from super().weigh(everyone, moment)

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; those of the last layer are mixed with the larger size's lesson."""
        sent, beta = self.compress(spec), self._momentum
        lesson = {
            name: sent[name] + (1 - beta) * (state[name] - sent[name]) + beta * change
            for name, change in self._taught.get(spec, {}).items()
            if name in state
        }
        return super().dilate({**state, **lesson}, spec)

    def _mean_change(self, spec: SubModelSpec, updates: Sequence[Update]) -> State:
        """Return the mean change that devices of one size made to each tensor, weighted by their examples."""
        changes: State = {}
        for name, start in self.compress(spec).items():
            mine = [update for update in updates if name in update.told]
            total = sum(update.examples for update in mine)
            shares = ((update.state[name] - start) * (update.examples / total) for update in mine)
            changes[name] = sum(shares, start * 0)
        return changes

    def _lesson(self, small: SubModelSpec, large: SubModelSpec, change: State) -> State:
        """Return what the last layer of `small` learns from `large`, by the names of its tensors.

        The lesson is a mean of `change`, the mean change of `large`: over its layers from this layer to its last one
        whose tensors have the same names and shapes.
        """
        *before, last = layers(small, self._model)
        like = _shapes(_layer(self.compress(small), last))
        later = [_layer(change, layer) for layer in layers(large, self._model)[len(before) :]]
        alike = [layer for layer in later if _shapes(layer) == like]
        return {last + name: torch.stack([layer[name] for layer in alike]).mean(0) for name in like}


def _layer(state: State, prefix: str) -> State:
    """Return the tensors of one layer by their names within it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


ROW = MethodRow(
    make=InclusiveFLMethod,
    module=build,
    size=InclusiveFLSize,
    source="InclusiveFL (Liu et al., KDD 2022)",
    idea="the first layers; each size's last one is its own",
    options=InclusiveFLConfig,
)
