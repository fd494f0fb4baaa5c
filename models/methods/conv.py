"""FedConv: learned convolutional compression and dilation (Shen et al., MobiSys 2024).

What differs from the authors' code, and why:

* Maps are linear and start as a slice and its inverse. The paper's activation, applied twice, makes every weight
  of a sub-model non-negative; without it no training is needed for a sub-model to work, and training can only help.
* A device's *change* is dilated, not its weights: `global + T(trained - C(global))`. A sub-model that comes back
  as it was sent therefore leaves the global model exactly as it was.
* One dilation map for each size, where the paper keeps one for each client: with partial participation most
  clients' own maps would be stale. All sizes' maps are fitted together, to the aggregate they make. Client weights
  are learned for each device and round, one scalar each under a softmax that starts at FedAvg's weights.
* Maps and weights are kept only where they lower the loss on the validation part of the proxy set (the
  reference code selects on test data and retries until a threshold is passed). The work is bounded.
* No supervised training of the global or of the devices' models: that is a separate server step which every
  method may use (`server.proxy`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diastole.models.accumulator import WEIGHT
from diastole.models.compressor import Base, Contribution, Offer, Patch, Proxy, Return, full_region, supervised
from diastole.models.cost import measure
from diastole.models.errors import SpecError
from diastole.models.methods import convmaps
from diastole.models.methods.sliced import lookup
from diastole.models.methods.width import build, check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state, network
from diastole.models.seeds import derive_seed, generator
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples, TrainConfig, batches, slices

Kernels = dict[str, Tensor]
Loss = Callable[[Examples], Tensor]


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ConvConfig:
    """The server's work for FedConv, all of it on the proxy set.

    Attributes:
        epochs: passes a round for each map of each size.
        learning_rate: Adam's, for the maps, over the square root of a kernel's taps.
        weight_epochs: passes a round for the client weights.
        weight_learning_rate: Adam's, for the logits of the client weights.
        batch_size: proxy examples a step.

    """

    epochs: int = Field(default=5, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_epochs: int = Field(default=5, ge=0)
    weight_learning_rate: float = Field(default=0.05, gt=0)
    batch_size: int = Field(default=32, ge=1)


@dataclass(slots=True)
class _Size:
    """What the server keeps of one size: the module's shapes, and its two learned maps."""

    shapes: dict[str, torch.Size]
    module: torch.nn.Module
    shrink: Kernels
    grow: Kernels


class ConvCompressor(Base):
    """Sub-models are learned convolutions of the global weights; dilation is a learned transposed convolution.

    A sub-model's weight `[O', I', *k]` is the convolution of the global `[O, I, *k]`, seen as one image for each
    kernel position, with a kernel `(O-O'+1, I-I'+1)` for each. The input layer keeps its I and the classifier its
    O because their shapes do; a tensor that keeps its whole shape is copied. Contributions cover every coordinate.
    """

    reconciles = True

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: ConvConfig | None = None,
    ) -> None:
        self._config = config or ConvConfig()
        with torch.device("meta"):
            self._global = network(model)
        shapes = {name: weight.shape for name, weight in self._global.named_parameters()}
        self._sizes: dict[SubModelSpec, _Size] = {}
        offers, self._model, self.whole = list[Offer](), model, SubModelSpec("conv")
        offered = [SubModelSpec("conv", width) for width in check_widths(widths)]
        for spec in dict.fromkeys([*offered, self.whole]):
            with torch.device("meta"):
                module = build(model, spec)
            small = {name: weight.shape for name, weight in module.named_parameters()}
            changed = [name for name in shapes if small[name] != shapes[name]]
            self._sizes[spec] = _Size(
                small,
                module,
                {name: _slice_kernel(shapes[name], small[name]) for name in changed},
                {name: _slice_kernel(shapes[name], small[name]) for name in changed},
            )
            if spec in offered:
                offers.append(Offer(spec, measure(module, model.input_shape, training)))
        super().__init__(offers)
        self._sent: dict[SubModelSpec, State] = {}
        self._proxy = Proxy(Examples.empty(), Examples.empty())

    def initial(self, seed: int) -> State:
        """Return a freshly initialised global model."""
        return initial_state(self._model, seed)

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> None:
        """Fit every size's compression map to the frozen global state, from where it stood last round.

        Raises `SpecError` without a proxy set that has both a training and a validation part.
        """
        self._state, self._proxy, self._sent = state, _checked(proxy), {}
        for spec, size in self._sizes.items():

            def loss(batch: Examples, size: _Size = size) -> Tensor:
                weights = _shrink(state, size)
                return F.cross_entropy(functional_call(size.module, weights, (batch.x,)), batch.y)

            self._fit_kernels([size.shrink], loss, derive_seed(moment.seed, spec.label, "shrink"))

    def memory(self) -> State:
        """Return every kernel of every size's two maps."""
        return {
            f"{spec.label}/{side}/{name}": kernel
            for spec, size in self._sizes.items()
            for side, kernels in (("shrink", size.shrink), ("grow", size.grow))
            for name, kernel in kernels.items()
        }

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Take the kernels as they are; nothing is fitted."""
        self._state, self._proxy, self._sent = state, _checked(proxy), {}
        for name, kernel in self.memory().items():
            kernel.copy_(memory[name])

    def compress(self, spec: SubModelSpec) -> State:
        """Return the global state under the size's compression map."""
        size = lookup(self._sizes, spec)
        if spec not in self._sent:
            with torch.no_grad():
                self._sent[spec] = {n: w.contiguous().clone() for n, w in _shrink(self._state, size).items()}
        return self._sent[spec]

    def reconcile(self, returns: Sequence[Return], seed: int) -> list[float]:
        """Fit the dilation map of each size, then the weight of each device; return the weights.

        The weights add up to the number of examples, as FedAvg's would.
        """
        if not returns:
            return []
        examples = torch.tensor([float(item.examples) for item in returns])
        changes: dict[SubModelSpec, dict[str, Tensor]] = {}
        members: dict[SubModelSpec, Tensor] = {}
        for spec in dict.fromkeys(item.spec for item in returns):
            members[spec] = torch.tensor([k for k, item in enumerate(returns) if item.spec == spec])
            sent = self.compress(spec)
            changes[spec] = {
                name: torch.stack([returns[int(k)].state[name] - sent[name] for k in members[spec]]) for name in sent
            }

        def summed(spec: SubModelSpec, shares: Tensor) -> State:
            """Return one size's changes, weighted by the devices' shares in the whole."""
            return {name: torch.tensordot(shares[members[spec]], stack, 1) for name, stack in changes[spec].items()}

        fair = {spec: summed(spec, examples / examples.sum()) for spec in changes}

        def fairly(batch: Examples) -> Tensor:
            return self._global_loss([_grow(change, self._sizes[spec]) for spec, change in fair.items()], batch)

        self._fit_kernels([self._sizes[spec].grow for spec in changes], fairly, derive_seed(seed, "grow"))
        logits = (examples / examples.sum()).log()

        def weighted(batch: Examples) -> Tensor:
            shares = logits.softmax(0)
            return self._global_loss([_grow(summed(spec, shares), self._sizes[spec]) for spec in changes], batch)

        config = self._config
        groups = [{"params": [logits], "lr": config.weight_learning_rate}]
        self._fit(groups, weighted, config.weight_epochs, derive_seed(seed, "weights"))
        return (logits.softmax(0) * examples.sum()).clamp(min=1 / WEIGHT).tolist()

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return the global state plus the dilated change of `state`; every coordinate is covered."""
        size, sent = lookup(self._sizes, spec), self.compress(spec)
        with torch.no_grad():
            change = _grow({name: state[name] - sent[name] for name in sent}, size)
        return {name: Patch(full_region(weight), weight + change[name]) for name, weight in self._state.items()}

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the global model on the labelled proxy set."""
        return supervised(network(self._model), state, proxy, training, moment)

    def _global_loss(self, changes: Sequence[Mapping[str, Tensor]], batch: Examples) -> Tensor:
        weights = {name: w + sum(change[name] for change in changes) for name, w in self._state.items()}
        return F.cross_entropy(functional_call(self._global, weights, (batch.x,)), batch.y)

    def _fit_kernels(self, maps: Sequence[Kernels], loss: Loss, seed: int) -> None:
        """Train maps in place, from last round's kernels or from the slice, whichever is better on validation."""
        kernels = [kernel for each in maps for kernel in each.values()]
        warm, warm_loss = [kernel.clone() for kernel in kernels], self._validation_loss(loss)
        for kernel in kernels:
            kernel.zero_()[:, 0, 0] = 1.0
        if self._validation_loss(loss) >= warm_loss:
            for kernel, value in zip(kernels, warm, strict=True):
                kernel.copy_(value)
        # Adam moves every tap by about its learning rate, and a weight is a sum over taps: without the root a large
        # kernel leaves its slice within a few steps, and the sub-model loses what its devices had learned.
        groups = [
            {"params": [kernel], "lr": self._config.learning_rate / math.sqrt(kernel[0].numel())} for kernel in kernels
        ]
        self._fit(groups, loss, self._config.epochs, seed)

    def _fit(self, groups: list[dict[str, Any]], loss: Loss, epochs: int, seed: int) -> None:
        """Train Adam's `groups` in place, and leave them as they were in the best epoch, the start included."""
        if not groups or not epochs:
            return
        parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        optimiser = torch.optim.Adam(groups)
        draws = generator(seed)
        best, kept = self._validation_loss(loss), [parameter.clone() for parameter in parameters]
        for _ in range(epochs):
            for parameter in parameters:
                parameter.requires_grad_(True)
            for batch in batches(self._proxy.training, self._config.batch_size, draws):
                optimiser.zero_grad(set_to_none=True)
                loss(batch).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            for parameter in parameters:
                parameter.requires_grad_(False)
            score = self._validation_loss(loss)
            if score < best:
                best, kept = score, [parameter.clone() for parameter in parameters]
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.grad = None
            parameter.copy_(value)

    def _validation_loss(self, loss: Loss) -> float:
        examples = self._proxy.validation
        with torch.no_grad():
            return sum(loss(part).item() * len(part) for part in slices(examples)) / len(examples)


def _checked(proxy: Proxy | None) -> Proxy:
    if proxy is None or not proxy.labelled or not len(proxy.training) or not len(proxy.validation):
        raise SpecError("method conv needs labelled proxy data with a validation part; give it at least 2 examples")
    return proxy


def _slice_kernel(large: torch.Size, small: torch.Size) -> Tensor:
    """Return kernels whose convolution takes the first rows and columns: one at the origin, zeros elsewhere."""
    positions, rows, columns = convmaps.images(torch.empty(large, device="meta")).shape
    _, fewer_rows, fewer_columns = convmaps.images(torch.empty(small, device="meta")).shape
    kernel = torch.zeros(positions, rows - fewer_rows + 1, columns - fewer_columns + 1)
    kernel[:, 0, 0] = 1.0
    return kernel


def _shrink(state: Mapping[str, Tensor], size: _Size) -> State:
    return {
        name: convmaps.weights(convmaps.compress(convmaps.images(weight), size.shrink[name]), size.shapes[name])
        if name in size.shrink
        else weight
        for name, weight in state.items()
    }


def _grow(change: Mapping[str, Tensor], size: _Size) -> State:
    grown = {}
    for name, weight in change.items():
        if name in size.grow:
            image = convmaps.dilate(convmaps.images(weight), size.grow[name])
            shape = torch.Size((image.shape[1], image.shape[2], *weight.shape[2:]))
            grown[name] = convmaps.weights(image, shape if weight.dim() > 1 else torch.Size(image.shape[2:]))
        else:
            grown[name] = weight
    return grown
