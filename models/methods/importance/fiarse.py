"""FIARSE: importance-aware sub-model extraction (Wu et al., NeurIPS 2024).

A sub-model of density s keeps the `round(s * d)` scalars of largest magnitude among the d weights of all convolutions
and linear layers, by one threshold theta for all of them; biases and normalisation are always kept. Small weights count
as unimportant, so the mask is a function of the weights, and a device trains both together:

    forward:  v = w * M(w),  M(w) = 1 where |w| >= theta, or else 0
    backward: dv/dw = M(w) + w * dM/dw

M is a step, whose derivative is zero or undefined. On kept entries the paper lets `m(a) = 2a / (a + theta)`, a = |w|,
stand in for it: m(theta) = 1, and m'(a) = 2 theta / (a + theta)^2. With da/dw = sign(w), the product rule gives
`w * m'(|w|) * sign(w) = |w| * m'(|w|)`, and so

    dv/dw = 1 + 2 theta |w| / (|w| + theta)^2  if |w| >= theta, or else 0:

a step is up to half as large again for weights near the threshold. A weight that falls below the threshold is left out
and has no gradient; the optimiser's momentum may still move it, and sometimes back above. The server then sees how
important the weight has become.

What differs from the authors' code, and why:

* Payloads are compact: the kept values, one bit a weight for where they belong, theta, and what is always kept. The
  code sends whole tensors with zeros in them. The server decides the mask: an update with another mask is refused.
* Each coordinate is averaged over the devices that hold it, weighted by their examples as in every method here; the
  code divides by the number of devices whose change is not zero, so a change that happens to be zero does not count.
* The code's mask is boolean, so nothing of dM/dw reaches a weight; here it does, as in the paper.
* The code's mask thins out biases too; here they are always kept.
* Exactly k scalars are kept; of equal magnitudes at the threshold, the first. A density of 1 is the plain model without
  a mask.

A mask saves bytes and nothing else. A sub-model takes the multiply-accumulates and about the memory of the whole model:
a scalar that is left out needs no gradient and no optimiser state, but the kept values lie beside the dense weights
made of them, which from a density of about 0.7 on takes more than is saved. The measured costs show this, so a device
that lacks the speed or the memory for the whole model takes no part.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.func import functional_call

from diastole.models.coordinates import Contribution, Coordinates, Scalars, Slots, full_region, gather, in_place
from diastole.models.crossing import fetch, send
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.bases.sliced import lookup
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.methods.widths.width import check_widths, width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.traced import CONVOLUTIONS
from diastole.models.networks.family import initial_state, network
from diastole.models.networks.mobilenet import DepthWise
from diastole.models.proxy import Proxy
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig

MASKED = (*CONVOLUTIONS, DepthWise, nn.Linear)
DIGITS = 10_000
"""Densities are multiples of 1 / DIGITS."""
VALUES, MASK, THRESHOLD, NETWORK = "values", "mask", "threshold", "network."


@validated(frozen=True, slots=True, config=STRICT)
class Density:
    """A size of FIARSE.

    Attributes:
        density: share of the scalars that are kept.

    """

    density: float = Field(default=1.0, gt=0, le=1)


def spec_of(density: float) -> SubModelSpec:
    """Return the spec of a density."""
    return labelled("fiarse", Density(density), density=density if density < 1 else 0)


class Masked(nn.Module):
    """A network whose convolution and linear weights are given by some of their scalars, and zero elsewhere.

    Parameters: `values` float32 `[k]`, the kept scalars of all masked tensors in the order of the network's parameters,
    row-major in each; `mask` uint8 `[ceil(d / 8)]`, one bit for each of the d scalars, the first in the lowest bit;
    `threshold` float32 `[]`; and `network.*`, the tensors that are always kept. Mask and threshold are not trained.
    """

    one_by_one = False
    """One tensor, `values`, has the weights of several layers, so no part can be trained alone."""

    def __init__(self, network: nn.Module, kept: int) -> None:
        """Take over `network` and replace its masked weights by `kept` of their scalars, all zero yet."""
        super().__init__()
        self.shapes = {name: network.get_parameter(name).shape for name in masked(network)}
        self.network = network
        for name in self.shapes:
            owner, _, own = name.rpartition(".")
            delattr(network.get_submodule(owner), own)
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self.values = nn.Parameter(torch.zeros(kept))
        self.mask = nn.Parameter(torch.zeros(-(-self.size // 8), dtype=torch.uint8), requires_grad=False)
        self.threshold = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for `x` with the dense weights."""
        logits: Tensor = functional_call(self.network, self._dense(), (x,))
        return logits

    def plain_form(self) -> nn.Module:
        """Return the network with the dense weights."""
        for name, weight in self._dense().items():
            owner, _, own = name.rpartition(".")
            self.network.get_submodule(owner).register_parameter(own, nn.Parameter(weight.detach().clone()))
        return self.network

    def _dense(self) -> State:
        flat: Tensor = _Unpack.apply(self.values, self.mask, self.threshold, self.size)  # type: ignore[no-untyped-call]
        parts = torch.split_with_sizes(flat, [shape.numel() for shape in self.shapes.values()])
        return {n: part.view(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}


class _Unpack(torch.autograd.Function):
    """The dense weights `[size]`, flat, with the derivative in the module's docstring. Saves parameters only."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, threshold: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(values, mask, threshold)
        ctx.size = size
        kept = torch.where(values.abs() >= threshold, values, 0.0)
        return values.new_zeros(size).scatter_(0, _places(mask, size, len(values)), kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        values, mask, threshold = ctx.saved_tensors
        slope = slopes(values, threshold)
        return gradients[0].gather(0, _places(mask, ctx.size, len(values))) * slope, None, None, None


def slopes(values: Tensor, threshold: Tensor) -> Tensor:
    """Return dv/dw, as in the module's docstring, for each of `values`."""
    size = values.abs()
    # Both may be zero; then the mask has no slope.
    ratio = 2 * threshold * size / (size + threshold).clamp(min=torch.finfo(values.dtype).tiny ** 0.5).square()
    return torch.where(size >= threshold, 1 + ratio, 0.0)


def masked(network: nn.Module) -> list[str]:
    """Return the names of the weights that a mask may thin out."""
    owned = {f"{name}.weight" for name, layer in network.named_modules() if isinstance(layer, MASKED)}
    return [name for name, _ in network.named_parameters() if name in owned]


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the global model with the largest scalars of a random draw. Raises `SpecError`."""
    size: Density = spec.options
    dense = network(model)
    if size.density == 1:
        return dense
    names, device = masked(dense), next(dense.parameters()).device
    flat = torch.cat([dense.get_parameter(name).detach().flatten() for name in names])
    kept = round(size.density * len(flat))
    if not kept:
        raise SpecError(f"density {size.density:g} keeps none of {len(flat)} weights")
    module = Masked(dense, kept)
    if device.type != "meta":
        index, threshold = largest(flat, kept)
        state = state_of(module) | {VALUES: flat[index], MASK: pack(index, len(flat)), THRESHOLD: threshold}
        module.load_state_dict(state)
    return module


class FiarseMethod(Indexed):
    """Sub-models are the scalars of largest magnitude; each tier gets as many as its bytes can carry."""

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, options: None = None
    ) -> None:
        """Offer, for each width, the largest density with a payload within that of plain training at the width.

        The mask alone takes a bit a weight, so a width below about 0.18 cannot afford any density. Raises `SpecError`
        for a width that cannot be built, and if no width affords a density.
        """
        self.whole = spec_of(1.0)
        self._model = model
        with hollow():
            dense = network(model)
        self._masked = masked(dense)
        self._full = in_place({name: full_region(tensor) for name, tensor in dense.named_parameters()})
        budgets = [width_cost(model, width, training).bytes_down for width in check_widths(widths)]
        densities = dict.fromkeys(density for budget in budgets if (density := _affordable(dense, budget)) > 0)
        if not densities:
            raise SpecError(f"method fiarse: widths {sorted(widths)} are all too small to pay for a mask; add a larger")
        specs = [spec_of(density) for density in densities]
        super().__init__(Size(spec, cost_of(model, spec, training)) for spec in specs)
        self._chosen: dict[SubModelSpec, tuple[Slots, State]] = {}
        self._known = dict.fromkeys([*(size.spec for size in self._sizes), self.whole])

    def initial(self, seed: int) -> State:
        """Return a freshly initialised global model."""
        return initial_state(self._model, seed)

    def origins(self) -> Slots:
        """Return the plain network's tensors."""
        return self._full

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Give each device the largest density that fits it: costs need not ascend with density."""
        return {device: max(sizes, key=lambda size: size.spec.options.density) for device, sizes in fits.items()}

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state, which decides the masks."""
        self._chosen.clear()
        return super().prepare(state, proxy, moment)

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state."""
        super().resume(state, proxy, moment, memory)
        self._chosen.clear()

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return the slots of the scalars that are kept of this round's global state, by the global tensors' names."""
        return self._choose(spec)[0]

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised module of the sub-model."""
        return build(self._model, spec)

    def compress(self, spec: SubModelSpec) -> State:
        """Return the scalars of largest magnitude, their mask and their threshold, and what is always kept."""
        slots, extra = self._choose(spec)
        parts = gather(self._state, slots)
        if not extra:
            return parts
        values = torch.cat([parts.pop(name) for name in self._masked if name in parts])
        rest = {NETWORK + name: tensor for name, tensor in parts.items()}
        return {VALUES: values, **{name: tensor.clone() for name, tensor in extra.items()}, **rest}

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; the mask that a device returns is ignored."""
        slots, extra = self._choose(spec)
        if not extra:
            return super().dilate(state, spec)
        thin = [name for name in self._masked if name in slots]
        counts = [len(cast(Scalars, slots[name].region).index) for name in thin]
        parts = dict(zip(thin, torch.split_with_sizes(state[VALUES], counts), strict=True))
        return super().dilate({n: parts[n] if n in parts else state[NETWORK + n] for n in slots}, spec)

    def _choose(self, spec: SubModelSpec) -> tuple[Slots, State]:
        """Return a size's slots, and its mask and threshold if it has them."""
        lookup(self._known, spec)
        if spec.options.density == 1:
            return self._full, {}
        if spec not in self._chosen:
            flat = torch.cat([self._state[name].flatten() for name in self._masked])
            index, threshold = largest(flat, round(spec.options.density * len(flat)))
            regions: dict[str, Coordinates] = {}
            sizes = [self._state[name].numel() for name in self._masked]
            ends = torch.tensor(sizes).cumsum(0)
            before = torch.searchsorted(index, send(ends, index.device))
            counts = [int(count) for count in fetch([before])[0].diff(prepend=torch.zeros(1, dtype=torch.int64))]
            mine = dict(zip(self._masked, torch.split_with_sizes(index, counts), strict=True))
            starts = dict(zip(self._masked, (ends - torch.tensor(sizes)).tolist(), strict=True))
            for name, slot in self._full.items():
                if name not in mine:
                    regions[name] = slot.region
                elif len(mine[name]):
                    regions[name] = Scalars(mine[name] - starts[name])
            extra = {MASK: pack(index, len(flat)), THRESHOLD: threshold}
            self._chosen[spec] = in_place(regions), extra
        return self._chosen[spec]


def largest(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the places, ascending, of the `count` scalars of largest magnitude, and the least of these magnitudes.

    Of equal magnitudes the first are taken.
    """
    size = flat.abs()
    threshold = size.kthvalue(len(flat) - count + 1).values
    above, equal = size > threshold, size == threshold
    # Static, because the number is known: a card need not tell it.
    kept = above | (equal & (equal.cumsum(0) <= count - above.sum()))
    return torch.nonzero_static(kept, size=count).flatten(), threshold


def pack(index: Tensor, size: int) -> Tensor:
    """Return a mask of `size` bits, set at `index`, in bytes; the first bit is the lowest of the first byte."""
    bits = torch.zeros(-(-size // 8) * 8, dtype=torch.uint8, device=index.device)
    bits[index] = 1
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=index.device)).sum(1, dtype=torch.uint8)


def _places(mask: Tensor, size: int, kept: int) -> Tensor:
    """Return the places of the bits that are set in a packed mask; there are `kept` of them, or none yet."""
    bits = (mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device)).flatten()[:size] & 1
    return torch.nonzero_static(bits, size=kept, fill_value=0).flatten()


def _affordable(dense: nn.Module, budget: int) -> float:
    """Return the largest density whose payload is within `budget` bytes, rounded down; 0 for none."""
    weights = dict(dense.named_parameters())
    if sum(weight.nbytes for weight in weights.values()) <= budget:
        return 1.0
    names = masked(dense)
    size = sum(weights[name].numel() for name in names)
    always = sum(weight.nbytes for name, weight in weights.items() if name not in names)
    affordable = (budget - always - -(-size // 8) - torch.float32.itemsize) // torch.float32.itemsize
    # Rounding to whole scalars must not take one more than is affordable.
    density = math.floor(affordable / size * DIGITS) / DIGITS
    return density if round(density * size) else 0.0


ROW = MethodRow(
    make=FiarseMethod,
    module=build,
    size=Density,
    source="FIARSE (Wu et al., NeurIPS 2024)",
    idea="the scalars of largest magnitude",
)
