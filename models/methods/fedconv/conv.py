"""FedConv: learned convolutional compression and dilation (Shen et al., MobiSys 2024).

What differs from the authors' code, and why:

* Maps start as a slice and its inverse, without the code's weight normalisation and affine projection, and are linear
  unless `activation` says otherwise. The paper's activation makes nearly every weight of a sub-model non-negative;
  without it no training is needed for a sub-model to work, and training can only help. "signed" has its larger slope
  on both sides, so that weights keep their sign.
* A device's *change* is dilated, not its weights: `global + T(trained) - T(C(global))`, which is
  `global + T(trained - C(global))` if T is linear. A sub-model that comes back as it was sent therefore leaves the
  global model exactly as it was.
* One dilation map for each size. The paper keeps one for each client, most of which would be stale with partial
  participation. The maps of all sizes are fitted together, to the aggregate that they make. Device weights are learned
  in each round under a softmax that starts at FedAvg's weights: one weight a device, or one a device and tensor. The
  code learns one for each scalar, without bounds.
* Maps and weights are kept only where they lower the loss on the validation part of the proxy set (the
  reference code selects on test data and retries until a threshold is passed). The work is bounded.
* Without labels every fit distils the round's frozen global model, by the Kullback-Leibler divergence from its
  predictions on the proxy inputs (temperature 1; by the run's loss where it gives values). All maps and device weights
  then keep what the global model knows: they can recognise a poisoned update, but not what devices have newly learned.
* No supervised training of the global model: that is a separate server step which every method may use
  (`server.proxy`). Uploaded models are not trained either, which in the code is most of the server's work: it would
  give one method more of the proxy set than any other.
* Five passes a fit where the code has ten to twenty, with larger rates (3e-3 over the square root of a kernel's taps
  for maps, 0.05 for the few device weights), chosen on parts of training sets, and no decay of the rates.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.accumulator import WEIGHT
from diastole.models.batches import least_batch, slices
from diastole.models.coordinates import Contribution, Patch, Slots, full_region, in_place
from diastole.models.crossing import device_of, fetch, send
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.loading import load
from diastole.models.losses import divergence
from diastole.models.method import Base, Size, Weight
from diastole.models.methods.bases.sliced import lookup
from diastole.models.methods.fedconv import convmaps, selection
from diastole.models.methods.fedconv.maps import Kernels, Maps
from diastole.models.methods.registry import Conditions, MethodRow, cost_of
from diastole.models.methods.widths.heterofl import Width, build
from diastole.models.methods.widths.width import check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.networks.family import initial_state, network
from diastole.models.proxy import Proxy, supervised
from diastole.models.recalibrate import ready
from diastole.models.seeds import derive_seed
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.spilled import spilled
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import Examples, TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class ConvConfig:
    """The server's work for FedConv, all of it on the proxy set.

    Attributes:
        epochs: passes a round for each map of each size.
        learning_rate: Adam's, for the maps, over the square root of a kernel's taps.
        activation: after every convolution of weights, compressing and dilating: "none", "signed" (slope 0.85) or
            "paper" (slopes 0.85 for positive and 0.001 for negative values; while weights are learned, the server then
            has every device's dilated change in memory).
        activations: how often the activation is applied; the authors' code applies it twice.
        weights: what has a weight of its own: each "device", or each device's every "tensor".
        labels: whether the proxy set's labels are used; without them every fit distils the global model.
        weight_epochs: passes a round for the device weights.
        weight_learning_rate: Adam's, for the logits of the device weights.
        batch_size: proxy examples a step.

    """

    epochs: int = Field(default=5, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    activation: Literal["none", "signed", "paper"] = "none"
    activations: Literal[1, 2] = 1
    weights: Literal["device", "tensor"] = "device"
    labels: bool = True
    weight_epochs: int = Field(default=5, ge=0)
    weight_learning_rate: float = Field(default=0.05, gt=0)
    batch_size: int = Field(default=32, ge=1)


def spec_of(width: float) -> SubModelSpec:
    """Return the spec of a width."""
    return labelled("conv", Width(width), width)


class ConvMethod(Base):
    """Sub-models are learned convolutions of the global weights; dilation is a learned transposed convolution.

    A global weight `[O, I, *k]` is seen as one image for each kernel position. Each image is convolved with a kernel
    `(O-O'+1, I-I'+1)` of its own, which gives the sub-model's weight `[O', I', *k]`. The input layer keeps its I and
    the classifier its O; a tensor of unchanged shape is copied. Contributions cover every coordinate. After a
    concatenation the first channels are not the first rows and columns of a weight; such a weight is reordered, so that
    they are, before it is mapped.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: ConvConfig | None = None,
    ) -> None:
        self._config = config or ConvConfig()
        slopes = convmaps.SLOPES[self._config.activation]
        self._linear = slopes[0] == slopes[1]
        with hollow():
            self._global = network(model)
        self._least = least_batch(self._global)
        shapes = {name: weight.shape for name, weight in self._global.named_parameters()}
        self._maps: dict[SubModelSpec, Maps] = {}
        self._model, self.whole = model, spec_of(1.0)
        offered = [spec_of(width) for width in check_widths(widths)]
        for spec in dict.fromkeys([*offered, self.whole]):
            with hollow():
                module = build(model, spec)
            self._maps[spec] = Maps(model, module, shapes, slopes, self._config.activations)
        super().__init__(Size(spec, cost_of(model, spec, training)) for spec in offered)
        self._sent: dict[SubModelSpec, State] = {}
        self._proxy = Proxy(Examples.empty(), Examples.empty())
        self._criterion, self._taught = training.criterion, torch.empty(0)

    def initial(self, seed: int) -> State:
        """Return a freshly initialised global model."""
        return initial_state(self._model, seed)

    def origins(self) -> Slots:
        """Return the plain network's tensors."""
        return in_place({name: full_region(weight) for name, weight in self._global.named_parameters()})

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of the sub-model."""
        return build(self._model, spec)

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Fit every size's compression map to the frozen global state, from where it stood last round.

        Raises `SpecError` without a proxy set that has both a training and a validation part.
        """
        self._hold(state, proxy)
        for spec, maps in self._maps.items():

            def loss(batch: Examples, maps: Maps = maps) -> Tensor:
                return self._loss(functional_call(maps.module, maps.compress(self._state), (batch.x,)), batch)

            self._fit_kernels([maps.shrink], loss, derive_seed(moment.seed, spec.label, "shrink"))
        return state

    def memory(self) -> State:
        """Return every kernel of every size's two maps."""
        return {
            f"{spec.label}/{side}/{name}": kernel
            for spec, maps in self._maps.items()
            for side, kernels in (("shrink", maps.shrink), ("grow", maps.grow))
            for name, kernel in kernels.items()
        }

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Take the kernels as they are; nothing is fitted."""
        self._hold(state, proxy)
        for name, kernel in self.memory().items():
            kernel.copy_(send(memory[name], kernel.device))

    def compress(self, spec: SubModelSpec) -> State:
        """Return the global state under the size's compression map."""
        maps = lookup(self._maps, spec)
        if spec not in self._sent:
            with torch.no_grad():
                self._sent[spec] = {n: w.contiguous().clone() for n, w in maps.compress(self._state).items()}
        return self._sent[spec]

    def needs_all(self, moment: Moment) -> bool:
        """Return True: dilation maps and weights are fitted to the aggregate of all updates."""
        return True

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Fit the dilation map of each size, then the weight of each device; yield the updates with their weights.

        For each tensor, the weights of the devices add up to their number of examples, as with FedAvg.
        """
        updates = list(updates)
        if updates:
            yield from zip(updates, self._weights(updates, moment.seed), strict=True)

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return the global state plus the dilated change of `state`; every coordinate is covered."""
        with torch.no_grad():
            change = self._change(state, spec)
        return {name: Patch(full_region(weight), weight + change[name]) for name, weight in self._state.items()}

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the global model on the labelled proxy set. Raises `SpecError` if labels are not to be used."""
        if not self._config.labels:
            raise SpecError("method conv with labels = false: the server cannot train on labels; set proxy.epochs to 0")
        return supervised(network(self._model), state, proxy, training, moment)

    def _weights(self, updates: Sequence[Update], seed: int) -> Sequence[Weight]:
        """Fit the maps and the weights of at least one update; return the weights."""
        specs, names, config = list(dict.fromkeys(item.spec for item in updates)), list(self._state), self._config
        members = {spec: [k for k, item in enumerate(updates) if item.spec == spec] for spec in specs}
        device = device_of(self._state)
        places = {spec: send(torch.tensor(mine), device) for spec, mine in members.items()}
        changes = {
            spec: _stacked([partial(_minus, updates[k].state, self.compress(spec)) for k in members[spec]])
            for spec in specs
        }
        columns = dict.fromkeys(names, 0) if config.weights == "device" else {name: k for k, name in enumerate(names)}
        dilated: dict[SubModelSpec, State] = {}

        def fitted(spec: SubModelSpec) -> State:
            """Return one size's dilated changes under maps that are being fitted."""
            made = [change() for change in self._changes(updates, members[spec])]
            return {name: torch.stack([each[name] for each in made]) for name in names}

        def total(spec: SubModelSpec, shares: Tensor) -> State:
            """Return the sum of one size's dilated changes, weighted by `shares` of the total, `[devices, columns]`."""
            # A linear map is applied once, to the sum, for any number of devices.
            stacks = changes[spec] if self._linear else dilated.get(spec) or fitted(spec)
            mine = shares[places[spec]]
            summed = {name: torch.tensordot(mine[:, columns[name]], stack, 1) for name, stack in stacks.items()}
            return self._maps[spec].dilate(summed) if self._linear else summed

        examples = send(torch.tensor([float(item.examples) for item in updates]), device)
        fair = (examples / examples.sum()).unsqueeze(1).repeat(1, max(columns.values()) + 1)

        def fairly(batch: Examples) -> Tensor:
            return self._global_loss([total(spec, fair) for spec in specs], batch)

        self._fit_kernels([self._maps[spec].grow for spec in specs], fairly, derive_seed(seed, "grow"))
        if not self._linear:
            with torch.no_grad():
                dilated.update({spec: _stacked(self._changes(updates, members[spec])) for spec in specs})
        logits = fair.log()

        def weighted(batch: Examples) -> Tensor:
            shares = logits.softmax(0)
            return self._global_loss([total(spec, shares) for spec in specs], batch)

        groups = [{"params": [logits], "lr": config.weight_learning_rate}]
        selection.fit(
            groups,
            weighted,
            self._proxy,
            config.weight_epochs,
            config.batch_size,
            derive_seed(seed, "weights"),
            self._least,
        )
        found = fetch([(logits.softmax(0) * examples.sum()).clamp(min=1 / WEIGHT)])[0].tolist()
        if config.weights == "device":
            return [row[0] for row in found]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _hold(self, state: State, proxy: Proxy | None) -> None:
        """Hold the round's global state, and the proxy set; if labels are not to be used, row numbers replace them."""
        checked = _checked(proxy, self._config.labels, self._least)
        self._state, self._proxy, self._sent = state, checked, {}
        self._place(device_of(state))
        if self._config.labels:
            return
        training, validation = checked.training.x, checked.validation.x
        numbers = torch.arange(len(training) + len(validation), device=training.device)
        self._proxy = Proxy(
            Examples(training, numbers[: len(training)]), Examples(validation, numbers[len(training) :])
        )
        teacher = ready(load(deepcopy(self._global), state), training).eval()
        with torch.no_grad():
            halves = self._proxy.training, self._proxy.validation
            self._taught = torch.cat([teacher(part.x) for half in halves for part in slices(half)])

    def _place(self, device: torch.device) -> None:
        """Have the maps, and what modules have beside their parameters, on a card."""
        if device.type != "cpu":
            move_constants(self._global, device)
            for maps in self._maps.values():
                maps.place(device)

    def _loss(self, outputs: Tensor, batch: Examples) -> Tensor:
        """Return the run's loss, or the divergence from the frozen global model's predictions."""
        if self._config.labels:
            return self._criterion.mean(outputs, batch.y)
        return divergence(outputs, self._taught[batch.y], self._criterion)

    def _global_loss(self, changes: Sequence[Mapping[str, Tensor]], batch: Examples) -> Tensor:
        weights = {name: w + sum(change[name] for change in changes) for name, w in self._state.items()}
        return self._loss(functional_call(self._global, weights, (batch.x,)), batch)

    def _change(self, state: State, spec: SubModelSpec) -> State:
        """Return the dilated change of a returned sub-model: zero if it came back as it was sent."""
        maps, sent = lookup(self._maps, spec), self.compress(spec)
        if self._linear:
            return maps.dilate(_minus(state, sent))
        return _minus(maps.dilate(state), maps.dilate(sent))

    def _changes(self, updates: Sequence[Update], members: Sequence[int]) -> list[Callable[[], State]]:
        return [partial(self._change, updates[k].state, updates[k].spec) for k in members]

    def _fit_kernels(self, maps: Sequence[Kernels], loss: selection.Loss, seed: int) -> None:
        """Train maps in place, from last round's kernels or from the slice, whichever is better on validation."""
        kernels = [kernel for each in maps for kernel in each.values()]
        warm, warm_loss = (
            [kernel.clone() for kernel in kernels],
            selection.mean_loss(loss, self._proxy.validation, self._least),
        )
        for kernel in kernels:
            kernel.zero_()[:, 0, 0] = 1.0
        if selection.mean_loss(loss, self._proxy.validation, self._least) >= warm_loss:
            for kernel, value in zip(kernels, warm, strict=True):
                kernel.copy_(value)
        # Adam moves every tap by about its learning rate, and a weight is a sum over taps: without the root a large
        # kernel leaves its slice within a few steps, and the sub-model loses what its devices had learned.
        groups = [
            {"params": [kernel], "lr": self._config.learning_rate / math.sqrt(kernel[0].numel())} for kernel in kernels
        ]
        selection.fit(groups, loss, self._proxy, self._config.epochs, self._config.batch_size, seed, self._least)


def _checked(proxy: Proxy | None, labels: bool, least: int) -> Proxy:
    few = proxy is None or min(len(proxy.training), len(proxy.validation)) < least
    if proxy is None or few or (labels and not proxy.labelled):
        kind = "labelled proxy data" if labels else "proxy data"
        raise SpecError(f"method conv needs {kind} with a validation part; each part must have at least {least}")
    return proxy


def _minus(left: State, right: State) -> State:
    return {name: left[name] - tensor for name, tensor in right.items()}


def _stacked(made: Sequence[Callable[[], State]]) -> State:
    """Return states as they are made, stacked; few of many large ones are in memory at a time."""
    stacks: dict[str, Tensor] = {}
    for number, make in enumerate(made):
        for name, tensor in make().items():
            if name not in stacks:
                stacks[name] = spilled((len(made), *tensor.shape), tensor)
            stacks[name][number] = tensor
    return stacks


def check(config: ConvConfig, conditions: Conditions) -> None:
    """Raise `SpecError` if the server is to train on labels although `labels` is false."""
    if not config.labels and conditions.server_epochs:
        raise SpecError(f"methods.conv.labels = false: proxy.epochs must be 0, not {conditions.server_epochs}")


ROW = MethodRow(
    make=ConvMethod,
    module=build,
    size=Width,
    source="FedConv (Shen et al., MobiSys 2024)",
    idea="learned convolutions of all weights",
    options=ConvConfig,
    proxy=True,
    unlabelled=lambda config: not config.labels,
    check=check,
)
