"""Shared by methods that train many architectures inside one supernet: slices, channel order, and the sandwich."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from diastole.models.channels import Axis, Joined, Layout, importance, members
from diastole.models.coordinates import Region, Slots, gather, in_place
from diastole.models.errors import SpecError
from diastole.models.hollow import hollow
from diastole.models.method import Size, most_capable
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.bases.sliced import lookup
from diastole.models.methods.supernets.architectures import Architecture, Space, build, grouped, pool, spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state, layout
from diastole.models.networks.registry import NETWORKS
from diastole.models.proxy import Proxy
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig

Ranking = Mapping[str, Tensor]
"""Each set's channels from the most to the least important; a smaller sub-network has the first ones."""


@validated(frozen=True, slots=True, config=STRICT)
class SupernetConfig:
    """Which architectures there are, and when they are trained.

    Attributes:
        pool: number of random architectures on offer, beside the largest, the smallest and one for each tier.
        shares: the shares of the largest expansion ratio (in networks without one, of a stage's channels) that a block
            may have; 1 is always among them.
        warmup: share of the rounds, at the start, in which every device trains the largest sub-network that it can
            hold.
        sort: whether channels are ordered by importance when the warm-up ends; they are never ordered without a
            warm-up.

    """

    pool: int = Field(default=24, ge=0)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    sort: bool = True

    def __post_init__(self) -> None:
        """Check the shares."""
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares {list(self.shares)}: each must be in (0, 1]")


class Supernet(Indexed):
    """Sub-models are sub-networks of a pool (`architectures.pool`); each coordinate is averaged over its holders.

    A sub-network has the first channels inside each block, or the most important ones (Once-for-All, Cai et al., ICLR
    2020, section 3.3: by the L1 norm of the weights that read them; whole normalisation groups, so that they are
    normalised as inside the supernet). Channels are ordered once, by index: the global tensors stay as they are. All
    sizes use one order, so smaller sub-networks are inside larger ones; OFA achieves this by sorting within the
    segments that earlier phases have fixed.
    """

    def __init__(
        self,
        method: str,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: SupernetConfig,
        elastic: bool,
    ) -> None:
        """Offer a pool of `model`'s architectures; `elastic` says whether kernels have several sizes."""
        self.whole = spec_of(method, Architecture())
        self._model, self._config = model, config
        self._space = Space.of(method, model, config.shares, elastic)
        sizes = pool(method, model, tuple(widths), training, config.shares, config.pool, elastic)
        super().__init__(sizes)
        self._groups = {
            spec: number
            for number, specs in enumerate(grouped([(size.spec, size.cost) for size in sizes]))
            for spec in specs
        }
        blocks = NETWORKS[model.name].elastic
        self._matrices = blocks.transforms(model) if elastic and blocks else {}
        self._layout: Layout = {**layout(model), **dict.fromkeys(self._matrices, (None, None, None))}
        self._shapes = {size.spec: _shapes(model, size.spec) for size in sizes}
        self._full = {**self._shapes[self.whole], **{name: tensor.shape for name, tensor in self._matrices.items()}}
        self._order: dict[str, Tensor] = {}
        self._slots: dict[SubModelSpec, Slots] = {}
        self._had_largest, self._had_smallest = Counter[str](), Counter[str]()

    def initial(self, seed: int) -> State:
        """Return a freshly initialised supernet; matrices of kernels start as the identity."""
        return {**initial_state(self._model, seed), **{name: tensor.clone() for name, tensor in self._matrices.items()}}

    def origins(self) -> Slots:
        """Return the plain network's tensors; matrices of kernels are the method's own."""
        return in_place({name: Region.prefix(shape) for name, shape in self._shapes[self.whole].items()})

    def slots(self, spec: SubModelSpec) -> Slots:
        """Return where the sub-network lies in the supernet. Raises `SpecError` if it is not on offer."""
        if spec not in self._slots:
            shapes = lookup(self._shapes, spec)
            self._slots[spec] = in_place(regions(self._layout, self._full, shapes, self._order))
        return self._slots[spec]

    def module(self, spec: SubModelSpec) -> nn.Module:
        """Return a freshly initialised sub-network."""
        return build(self._model, spec)

    @property
    def choices(self) -> tuple[int, ...]:
        """Depths, then kernels, then ratios."""
        return self._space.sizes

    def at(self, numbers: Sequence[int]) -> SubModelSpec:
        """Return an architecture of the space."""
        return self._space.spec(tuple(numbers))

    def cut(self, spec: SubModelSpec) -> State:
        """Return the parameters of any sub-network."""
        places = regions(self._layout, self._full, _shapes(self._model, spec), self._order)
        return gather(self._state, in_place(places))

    def lasting(self) -> State:
        """Return the order of the channels."""
        return {f"order/{channels}": order for channels, order in self._order.items()}

    def warms(self, moment: Moment) -> bool:
        """Return whether the round is one of the warm-up."""
        return moment.round <= self.warm_rounds(moment)

    def warm_rounds(self, moment: Moment) -> int:
        """Return the number of rounds of the warm-up."""
        return ceil(self._config.warmup * moment.rounds - 1e-9)

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state; order the channels once, when the warm-up has ended."""
        super().prepare(state, proxy, moment)
        if self._config.sort and self._config.warmup and not self._order and not self.warms(moment):
            self._order, self._slots = importance_order(self._layout, state, self._model.group), {}
        return state

    def memory(self) -> State:
        """Return the order of the channels, and how often each device has had its largest and its smallest size."""
        return {
            **self.lasting(),
            **{f"largest/{device}": torch.tensor(count) for device, count in self._had_largest.items()},
            **{f"smallest/{device}": torch.tensor(count) for device, count in self._had_smallest.items()},
        }

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Take up the order and the counts."""
        super().resume(state, proxy, moment, memory)
        self._order, self._slots = {}, {}
        self._had_largest.clear()
        self._had_smallest.clear()
        for name, value in memory.items():
            kind, _, key = name.partition("/")
            if kind == "order":
                self._order[key] = value
            else:
                (self._had_largest if kind == "largest" else self._had_smallest)[key] = int(value)

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Make a sandwich (SuperFedNAS, Khare et al., ECCV 2024), within what each device can hold.

        One device gets its largest size: of the devices that can hold the largest size that any device of the cohort
        can, the one that has had its own largest least often. Of the other devices, the one that has had its own
        smallest size least often gets its smallest. The rest get a random size, with each group of training work
        equally likely. Ties are broken at random. A random size that is a device's largest or smallest counts as such,
        as in the authors' code.

        In the paper any device may get the largest sub-network, and the draw is uniform among architectures, most of
        which are of middling size. During the warm-up every device gets its largest size, and nothing is counted.
        """
        if self.warms(moment):
            return most_capable(fits, moment)
        given = sandwich(fits, self._had_largest, self._had_smallest, self._groups, moment.seed)
        self._had_largest.update(device for device, size in given.items() if size == fits[device][-1])
        self._had_smallest.update(device for device, size in given.items() if size == fits[device][0])
        return given


def sandwich(
    fits: Mapping[str, Sequence[Size]],
    had_largest: Mapping[str, int],
    had_smallest: Mapping[str, int],
    groups: Mapping[SubModelSpec, int],
    seed: int,
) -> dict[str, Size]:
    """Return the size that each device gets: one its largest, one its smallest, the others a random one.

    Args:
        fits: for each device the sizes that fit it, smallest first.
        had_largest: how often each device has had its largest; missing for never.
        had_smallest: how often each device has had its smallest, likewise.
        groups: the group of training work that each size is in.
        seed: of every draw.

    """
    if not fits:
        return {}
    draws = generator(seed, "sandwich")
    names = list(fits)
    luck = dict(zip(names, torch.randperm(len(names), generator=draws).tolist(), strict=True))
    top = max(sizes[-1].cost.training_macs for sizes in fits.values())
    able = [name for name in names if fits[name][-1].cost.training_macs == top]
    first = min(able, key=lambda name: (had_largest.get(name, 0), luck[name]))
    given = {first: fits[first][-1]}
    others = [name for name in names if name != first]
    if others:
        second = min(others, key=lambda name: (had_smallest.get(name, 0), luck[name]))
        given[second] = fits[second][0]
    for name in names:
        if name not in given:
            given[name] = _drawn(fits[name], groups, generator(seed, "sandwich", name))
    return {name: given[name] for name in names}


def _drawn(sizes: Sequence[Size], groups: Mapping[SubModelSpec, int], draws: torch.Generator) -> Size:
    by_group: dict[int, list[Size]] = {}
    for size in sizes:
        by_group.setdefault(groups[size.spec], []).append(size)
    members = list(by_group.values())[int(torch.randint(len(by_group), (), generator=draws))]
    return members[int(torch.randint(len(members), (), generator=draws))]


def regions(
    axes: Layout, full: Mapping[str, torch.Size], sizes: Mapping[str, torch.Size], order: Ranking
) -> dict[str, Region]:
    """Return where the tensors of a sub-network lie in the supernet.

    An axis of channels keeps the first ones, or the first ones of `order`; an axis of another kind, such as a
    kernel's rows, keeps its middle.

    Args:
        axes: what each axis of each tensor runs over.
        full: shapes in the supernet.
        sizes: shapes in the sub-network.
        order: of the channels, for sets that have one.

    """
    return {name: _region(axes[name], full[name], size, order) for name, size in sizes.items()}


def _region(axes: Sequence[Axis | Joined | None], full: torch.Size, size: torch.Size, order: Ranking) -> Region:
    kept = [_entries(axis, all_, some, order) for axis, all_, some in zip(axes, full, size, strict=True)]
    slices = tuple(entries for entries in kept if isinstance(entries, slice))
    if len(slices) == len(kept):
        return Region(slices)
    return Region(tuple(e if isinstance(e, Tensor) else torch.arange(e.start, e.stop) for e in kept))


def _entries(axis: Axis | Joined | None, full: int, size: int, order: Ranking) -> slice | Tensor:
    if axis is None:
        return slice((full - size) // 2, (full + size) // 2)
    if isinstance(axis, Joined):
        raise SpecError("a supernet cannot be sliced behind a concatenation; use a method that slices widths")
    if axis.channels not in order:
        return slice(0, size)
    # In order of importance even if all are kept, because stages of different widths meet by position.
    return members(order[axis.channels][: size // axis.repeat], axis.repeat)


def importance_order(axes: Layout, state: State, group: int) -> dict[str, Tensor]:
    """Return every set of channels from the most to the least important, in whole normalisation groups.

    A channel is as important as the L1 norm of the weights that read it. Weights of a squeeze do not count, because
    they only scale (Once-for-All looks at the projection alone). Channels inside a squeeze are not normalised, but they
    are kept in whole groups too, so any number of groups is a prefix of the order.
    """
    scores = importance({n: along for n, along in axes.items() if not n.endswith("squeeze.reduce.weight")}, state)
    found = {}
    for channels, score in scores.items():
        groups = score.reshape(-1, group).sum(1).argsort(descending=True, stable=True)
        found[channels] = members(groups, group)
    return found


def _shapes(model: ModelConfig, spec: SubModelSpec) -> dict[str, torch.Size]:
    with hollow():
        return {name: parameter.shape for name, parameter in build(model, spec).named_parameters()}
