"""InclusiveFL: the first layers, and momentum distillation between sizes (Liu et al., KDD 2022).

What differs from the paper and the authors' code, and why:

* Layers are residual blocks, or stages in a network without blocks; the paper's are transformer layers, which are
  all alike. Here only layers correspond whose tensors have the same names and shapes. The first of those that the
  paper averages is at the same place in the network, so there is always one; in a residual network there are more
  within a stage.
* What a network has between its last layer and its classifier, such as a transformer's norm, is a size's own too.
* The mean over those layers is a mean; in the code each layer overwrites the one before.
* Devices send trained weights, not gradients, and the server's optimiser is the run's own for every size.
* For each tier the size is the most layers within its limits.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.compressor import Contribution, Proxy, Return, Weight
from diastole.models.errors import SpecError
from diastole.models.methods.bases.budgets import best, tier_costs
from diastole.models.methods.bases.persize import PerSize
from diastole.models.methods.bases.sliced import cost_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network, parts
from diastole.models.networks.shape import depth, whole
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class InclusiveFLConfig:
    """How larger sub-models teach smaller ones.

    Attributes:
        momentum: share of the next larger size's mean update in that of a size's last layer (beta); 0 for none.

    """

    momentum: float = Field(default=0.2, ge=0, le=1)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the first layers of the global model, with a classifier of their own. Raises `SpecError`."""
    full = whole(model)
    count = spec.stages or len(spec.blocks) or depth(model)
    if count > depth(model):
        raise SpecError(f"stages {count}: model {model.name} has {depth(model)}")
    first = full.first(count)
    return network(model, replace(first, blocks=spec.blocks or first.blocks))


def layers(spec: SubModelSpec, model: ModelConfig) -> list[str]:
    """Return the layers of a sub-model, first to last: what the names of their tensors begin with."""
    blocks = spec.blocks or whole(model).blocks
    if blocks:
        return [f"stages.{stage}.{block}." for stage, kept in enumerate(blocks) for block in kept]
    return [f"stages.{stage}." for stage in range(spec.stages or depth(model))]


def behind(model: ModelConfig) -> list[str]:
    """Return what the names of the tensors behind all layers begin with: the classifier's, and those before it."""
    with torch.device("meta"):
        names = [name for name, _ in parts(network(model)).named_children()]
    return [f"{name}." for name in names[names.index("stages") + 1 :]]


def depths(model: ModelConfig) -> list[SubModelSpec]:
    """Return every size there could be: the first 1, 2, ... layers, and all of them."""
    full = whole(model).blocks
    if not full:
        sizes = [SubModelSpec("inclusivefl", stages=count) for count in range(1, depth(model))]
    else:
        sizes = [
            SubModelSpec("inclusivefl", blocks=(*full[:stage], tuple(range(count))))
            for stage, every in enumerate(full)
            for count in range(1, len(every) + 1)
        ][:-1]
    return [*sizes, SubModelSpec("inclusivefl")]


class InclusiveFLCompressor(PerSize):
    """Sub-models are the first layers; a size's last layer and what is behind it are its own, the others are shared.

    The update of a size's last layer is mixed with the mean update that the next larger size made to the layers
    from there to its own last one.
    """

    reconciles = True

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: InclusiveFLConfig | None = None,
    ) -> None:
        *others, _ = tier_costs(model, widths, training)
        families = [[spec] for spec in depths(model)]
        specs = [best(families, lambda spec: cost_of(build, model, spec, training), limit) for limit in others]

        ends = behind(model)

        def own(spec: SubModelSpec, name: str) -> bool:
            # What runs behind the layers (a transformer's last norm, say) is made for the one that it reads.
            return name.startswith((layers(spec, model)[-1], *ends))

        super().__init__(model, specs, SubModelSpec("inclusivefl"), build, training, own)
        self._momentum = (config or InclusiveFLConfig()).momentum
        self._taught: dict[SubModelSpec, State] = {}

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> None:
        """Hold the global state and forget what the round before taught."""
        super().prepare(state, proxy, moment)
        self._taught = {}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state."""
        self.prepare(state, proxy, moment)

    def reconcile(self, returns: Sequence[Return], seed: int) -> Sequence[Weight]:
        """Weigh each update by its examples, and work out what each size's last layer learns from the next size."""
        self._taught = {}
        for small, large in pairwise(self.sizes):
            mine = [item for item in returns if item.spec == large]
            if mine and self._momentum:
                self._taught[small] = self._lesson(small, large, self._mean_change(large, mine))
        return super().reconcile(returns, seed)

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from, those of the last layer after the larger size's lesson."""
        sent, beta = self.compress(spec), self._momentum
        lesson = {
            name: sent[name] + (1 - beta) * (state[name] - sent[name]) + beta * change
            for name, change in self._taught.get(spec, {}).items()
        }
        return super().dilate({**state, **lesson}, spec)

    def _mean_change(self, spec: SubModelSpec, returns: Sequence[Return]) -> State:
        """Return what devices of one size changed, the mean over their examples."""
        sent, total = self.compress(spec), sum(item.examples for item in returns)
        return {
            name: sum(((item.state[name] - start) * (item.examples / total) for item in returns), start * 0)
            for name, start in sent.items()
        }

    def _lesson(self, small: SubModelSpec, large: SubModelSpec, change: State) -> State:
        """Return, for each tensor of the last layer of `small`, the mean change to its like in `large`.

        The layers of `large` run from that one to its last one; only those are taken that are of the same make.
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
