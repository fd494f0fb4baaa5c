"""Split-Mix: many narrow networks that are trained apart (Hong et al., ICLR 2022, section 4)."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, sqrt
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.channels import counts, reads, select
from diastole.models.coordinates import Slot, Slots, full_region, in_place
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.bases.sliced import lookup
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.methods.widths.width import check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout, narrowed, network
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.start import plain_shapes
from diastole.models.state import State, state_of
from diastole.models.training import Objective, Step, TrainConfig

ROUNDING = 1e-9
"""How far 1 / width and width * bases may be from a whole number and still count as one."""

MOST_BASES = 60
"""A label names each of them, and has room for no more."""


@validated(frozen=True, slots=True, config=STRICT)
class SplitMixConfig:
    """How the model is split.

    Attributes:
        bases: number of networks, each of width 1 / bases; 0 for as many as it takes for the smallest tier to afford
            one.
        rescale: whether weights that read hidden channels start as small as in the full width.

    """

    bases: int = Field(default=0, ge=0, le=MOST_BASES)
    rescale: bool = True


@validated(frozen=True, slots=True, config=STRICT)
class Bases:
    """A size of Split-Mix.

    Attributes:
        width: of each base.
        bases: the numbers of the bases.

    """

    width: float = Field(default=1.0, gt=0, le=1)
    bases: tuple[Annotated[int, Field(ge=0, lt=MOST_BASES)], ...] = Field(default=(), max_length=MOST_BASES)


def spec_of(width: float, bases: tuple[int, ...]) -> SubModelSpec:
    """Return the spec of the bases of these numbers, each of one width."""
    return labelled("splitmix", Bases(width, bases), width, bases=bases)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the bases of a sub-model side by side. Raises `SpecError`."""
    return SplitMix(model, spec.options.width, spec.options.bases)


class SplitMix(Objective):
    """Networks of one width that share nothing; `bases` are their numbers, by which parameters are named."""

    def __init__(self, model: ModelConfig, width: float, bases: Sequence[int]) -> None:
        super().__init__()
        shape = narrowed(model, width)
        self.bases = nn.ModuleDict({str(base): network(model, shape) for base in bases})

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the bases' outputs, `[n, ...]`."""
        return torch.stack([base(x) for base in self.bases.values()]).mean(0)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the sum of the bases' losses: each base gets the gradient that it would get alone."""
        return torch.stack([step.criterion.mean(base(x), y) for base in self.bases.values()]).sum()


class SplitMixMethod(Indexed):
    """The global model is B independent bases of width 1/B; a sub-model is some of them, whole.

    A tier of width w gets floor(w * B) bases. Only their number is fixed: all rotations (bases s, s + 1, ... on a ring
    of B) are on offer and cost the same, and the one with s = 0 is exported. Each base is trained by its own
    loss and averaged over the devices that hold it, weighted by their examples; a model predicts with the mean
    of its bases' logits.

    What differs from the paper: a cohort's bases are dealt out one after another round the ring, from a random start
    and to devices in random order, so that in each round the numbers of trainers of any two bases differ by at most
    one. The paper deals only a device's first base in this way and draws its others at random. Here neighbours on the
    ring train on the same devices more often than other bases do. As in the paper's code, weights and biases of layers
    that read hidden channels start as small as in the full width: they are multiplied by the square root of the share
    of inputs that a base has. GroupNorm undoes the scale of the convolutions before it, which only get a larger
    effective learning rate; the logits of the classifier do change. The code's layer scaler would cancel altogether and
    is left out.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: SplitMixConfig | None = None,
    ) -> None:
        widths, self._model, self._config = check_widths(widths), model, config or SplitMixConfig()
        count = self._config.bases or ceil(1 / widths[0] - ROUNDING)
        if count > MOST_BASES:
            raise SpecError(f"method splitmix, width {widths[0]:g}: {count} bases; at most {MOST_BASES} are accepted")
        counts = {kept for width in widths if (kept := floor(width * count + ROUNDING))}
        if not counts:
            raise SpecError(f"method splitmix: {count} bases are too few for width {widths[-1]:g} to have one")
        self.whole = _rotation(count, 0, count)
        with hollow():
            tensors = {name: full_region(p) for name, p in self.module(self.whole).named_parameters()}
        self._slots: dict[SubModelSpec, Slots] = {self.whole: in_place(tensors)}
        sizes = []
        for kept in sorted(counts):
            rotations = [_rotation(count, start, kept) for start in range(count if kept < count else 1)]
            cost = cost_of(model, rotations[0], training)
            sizes += [Size(spec, cost, spec.options.bases[0] == 0) for spec in rotations]
            for spec in rotations:
                bases = spec.options.bases
                self._slots[spec] = in_place({n: r for n, r in tensors.items() if int(n.split(".")[1]) in bases})
        super().__init__(sizes)

    def initial(self, seed: int) -> State:
        """Return freshly initialised bases."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = state_of(self.module(self.whole))
        return self._rescaled(state) if self._config.rescale else state

    def origins(self) -> Slots:
        """Return the counterparts of the bases: each has channels of its own, the first base the first ones."""
        model, axes, shapes = self._model, layout(self._model), plain_shapes(self._model)
        with hollow():
            narrow = {
                name: p.shape
                for name, p in network(model, narrowed(model, self.whole.options.width)).named_parameters()
            }
        full, mine, found = counts(axes, shapes), counts(axes, narrow), dict[str, Slot]()
        for base in self.whole.options.bases:
            kept = {}
            for name, size in mine.items():
                # Whole normalisation groups, and none beyond the last.
                first = min(base * size, full[name] - size) // model.group * model.group
                kept[name] = torch.arange(first, first + size)
            found |= {f"bases.{base}.{name}": Slot(name, region) for name, region in select(axes, shapes, kept).items()}
        return found

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return all of the sub-model's bases. Raises `SpecError` for a sub-model that is not on offer."""
        return lookup(self._slots, spec)

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return freshly initialised bases. Raises `SpecError` if they are too narrow."""
        try:
            return build(self._model, spec)
        except SpecError as error:
            raise SpecError(f"method splitmix: {len(self.whole.options.bases)} bases: {error}") from None

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Give each device as many bases as fit it, dealt out round the ring so that all are covered evenly."""
        count, draws, names = len(self.whole.options.bases), generator(moment.seed, "bases"), list(fits)
        place = int(torch.randint(count, (), generator=draws))
        given: dict[str, Size] = {}
        for k in torch.randperm(len(names), generator=draws).tolist():
            sizes = fits[names[k]]
            most = max(len(size.spec.options.bases) for size in sizes)
            # All rotations cost the same: if one fits a device, then so does the one whose turn it is.
            given[names[k]] = min(
                (size for size in sizes if len(size.spec.options.bases) == most),
                key=lambda size: (size.spec.options.bases[0] - place) % count,
            )
            place = (place + most) % count
        return {name: given[name] for name in names}

    def _rescaled(self, state: State) -> State:
        """Return the bases, initialised like layers with the fan-in of the full width."""
        with hollow():
            full = dict(network(self._model).named_parameters())
        axes, scaled = layout(self._model), dict(state)
        for base in self.whole.options.bases:
            for name, at in ((name, reads(runs)) for name, runs in axes.items()):
                if at is None:
                    continue
                weight, bias = f"bases.{base}.{name}", f"bases.{base}.{name.removesuffix('weight')}bias"
                factor = sqrt(state[weight].shape[at] / full[name].shape[at])
                scaled |= {key: state[key] * factor for key in (weight, bias) if key in state}
        return scaled


def _rotation(count: int, start: int, kept: int) -> SubModelSpec:
    """Return `kept` of `count` bases, from number `start` onwards round the ring."""
    return spec_of(1 / count, tuple((start + k) % count for k in range(kept)))


ROW = MethodRow(
    make=SplitMixMethod,
    module=build,
    size=Bases,
    source="Split-Mix (Hong et al., ICLR 2022)",
    idea="some of many narrow networks, side by side",
    options=SplitMixConfig,
    recipe={"training.schedule": "cosine"},
)
