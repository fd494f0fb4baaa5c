"""SN-Net: stitchable networks (Pan et al., CVPR 2023), in a federation.

The paper takes pretrained anchors, and so does this method if it is given files of them (`anchors`). Otherwise devices
train anchors first, for a share of the run (`warmup`), each device an anchor that fits it. Then every stitch gets its
least-squares start, and devices train routes through the family.

What differs from the paper and its code, and why:

* One layer that serves several places is fitted to all of them together; the code averages their separate solutions,
  which minimises nothing.
* Activations come from clean examples in evaluation mode; the code uses augmented ones under drop-path.
* The start may come from the devices (`initialise = "devices"`): for a round or more, devices that can hold two
  neighbouring anchors return means of products of activations instead of weights (`stitched.Statistics`). They are
  global tensors, named `sums`, and FedAvg of them is their mean over all examples. A server optimiser that is not
  linear in the updates ("fedadam", "fedyogi") would spoil them.
* No distillation from a teacher beside the family, and one learning rate for anchors and stitches.
* Networks of any family are stitched, wherever maps are of one size; the paper has a rule for each family. Where
  anchors differ in depth, a stitch serves the places behind one block of the smaller anchor (the code's numbers of
  layers are shifted by a place), and stages are stitched that the paper skips, the last among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.batches import slices
from diastole.models.coordinates import Contribution, Slot, Slots, gather, scatter
from diastole.models.cost import Cost
from diastole.models.crossing import numbers
from diastole.models.errors import SpecError
from diastole.models.loading import load
from diastole.models.method import Size
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.methods.registry import Conditions, MethodRow, cost_of
from diastole.models.methods.stitching.routes import Depths, Pair, StitchedFamily, one_way
from diastole.models.methods.stitching.stitched import EveryRoute, Part, Statistics, module_of, spec_of
from diastole.models.methods.stitching.stitches import Sums, merge, solve
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy, supervised
from diastole.models.recalibrate import ready
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.start import inside
from diastole.models.state import State
from diastole.models.training import TrainConfig

EXPORTED = 12


@validated(frozen=True, slots=True, config=STRICT)
class StitchConfig:
    """How stitches come in.

    Attributes:
        warmup: share of the run's rounds in which only anchors are trained; by default 0.3, and 0 if anchors are given.
        anchors: files of trained anchors, one for each, the smallest first (`experiments/initial.py`); none if devices
            train them from the start.
        initialise: where stitches get their least-squares start from: the server's "proxy" set, whose labels are not
            looked at, the "devices", or "none" for a random start.
        statistics: rounds after the warm-up, at most, in which devices return statistics ("devices" only). A pair of
            anchors that no device could hold by then keeps stitches with a random start.
        ridge: of the least squares, a share of the mean square of the activations.

    """

    warmup: float | None = Field(default=None, ge=0, lt=1)
    anchors: tuple[str, ...] = ()
    initialise: Literal["proxy", "devices", "none"] = "proxy"
    statistics: int = Field(default=1, ge=1)
    ridge: float = Field(default=1e-6, ge=0)

    @property
    def anchors_alone(self) -> float:
        """The share of the rounds in which only anchors are trained."""
        return self.warmup if self.warmup is not None else 0.0 if self.anchors else 0.3


@validated(frozen=True, slots=True, config=STRICT)
class SNNetConfig(StitchConfig):
    """How stitches come in, and how deep anchors are.

    Attributes:
        depths: for each width of the tiers, from the smallest to the largest, how many blocks of each stage its anchor
            has: the first ones; no fewer than a narrower anchor's. Empty if all anchors have all blocks.

    """

    depths: Depths = ()


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the module of a sub-model. Raises `SpecError`."""
    part: Part = spec.options
    return module_of(one_way(model, part.widths, part.depths), part)


class StitchedMethod(Sliced):
    """What SN-Net and its second version share.

    A sub-model is a route, and global tensors are those of all anchors and all stitches.
    """

    partial = False  # a stitch is a part already: what it learns from stays as it is

    def __init__(
        self, family: StitchedFamily, whole: SubModelSpec, training: TrainConfig, config: StitchConfig
    ) -> None:
        """Offer every route of `family`; `whole` is all of them. Raises `SpecError` for too few or too many anchors."""
        self.family, self._config = family, config
        if config.anchors and len(config.anchors) != len(family.widths):
            raise SpecError(
                f"methods.{whole.method}.anchors: {len(config.anchors)} files; expected one for each of the widths "
                f"{list(family.widths)}, in this order"
            )
        self._statistics: dict[Pair, SubModelSpec] = {}
        if config.initialise == "devices":
            self._statistics = {
                pair: spec_of(whole.method, replace(whole.options, bases=pair)) for pair in family.meetings
            }
        routes = [spec_of(whole.method, replace(whole.options, route=k + 1)) for k in range(len(family.routes))]
        shown = _exported(family, {spec: cost_of(family.model, spec, training) for spec in routes}, training)
        super().__init__(family.model, [*routes, *self._statistics.values()], whole, training, shown.__contains__)
        self._anchors = set(routes[: len(family.widths)])
        self._routes = set(routes)
        self._missing = dict(self._statistics)
        self._open = False

    def initial(self, seed: int) -> State:
        """Return freshly initialised anchors and stitches, and sums that stand for no examples."""
        state = super().initial(seed)
        for spec in self._statistics.values():
            for name, tensor in self.module(spec).named_parameters():
                state.setdefault(name, torch.zeros_like(tensor))
        return state

    def origins(self) -> Slots:
        """Return the counterparts of the anchors' tensors: the first channels and the first blocks."""
        found: dict[str, Slot] = {}
        for anchor in range(len(self.family.widths)):
            start = f"anchors.{anchor}."
            shapes = {
                name.removeprefix(start): shape
                for name, shape in self._shapes[self.whole].items()
                if name.startswith(start)
            }
            places = inside(self.family.model, shapes)
            found |= {start + name: Slot(name, region) for name, region in places.items()}
        return found

    def assign(self, fits: Mapping[str, Sequence[Size]], moment: Moment) -> Mapping[str, Size]:
        """Give each device one of the routes that fit it, drawn anew each round; only anchors before stitches start.

        In rounds for statistics a device that can gives the pair of anchors that the fewest devices before it give.
        """
        gathering = self._missing if not self._open and moment.round >= self._first(moment) else {}
        counts, given = dict.fromkeys(gathering.values(), 0), {}
        for device, sizes in fits.items():
            able = [size for size in sizes if size.spec in counts]
            if able:
                given[device] = min(able, key=lambda size: counts[size.spec])
                counts[given[device].spec] += 1
                continue
            pool = [size for size in sizes if size.spec in (self._routes if self._open else self._anchors)]
            given[device] = self._draw(pool or sizes, generator(moment.seed, "route", device))
        return given

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Start the stitches, if the warm-up is over and what that needs is there.

        Raises `SpecError` without a proxy set if the start comes from there.
        """
        self._hold(state)
        late = moment.round - self._first(moment)
        if self._open or late < 0:
            return state
        if self._config.initialise == "proxy":
            self._state = self._started(_measured(self.family, state, proxy))
        elif self._config.initialise == "devices":
            if self._missing and late < self._config.statistics:
                return state
            ready = [pair for pair in self._statistics if pair not in self._missing]
            self._state = self._started(
                {name: self._held(name) for pair in ready for name in self.family.between(pair)}
            )
        self._open = True
        return self._state

    @property
    def choices(self) -> tuple[int, ...]:
        """The routes, anchors first."""
        return (len(self.family.routes),)

    def at(self, numbers: Sequence[int]) -> SubModelSpec:
        """Return a route."""
        return spec_of(self.whole.method, replace(self.whole.options, route=numbers[0] + 1))

    def cut(self, spec: SubModelSpec) -> State:
        """Return the parameters of a route."""
        return self.compress(spec)

    def lasting(self) -> State:
        """Return nothing: routes lie in the global state."""
        return {}

    def memory(self) -> State:
        """Return whether stitches have started."""
        return {"open": torch.ones(1)} if self._open else {}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state, in which stitches may have started."""
        self._hold(state)
        self._open = "open" in memory

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; of statistics the sums alone."""
        found = super().dilate(state, spec)
        if spec in self._statistics.values():
            return {name: patch for name, patch in found.items() if name.startswith("sums.")}
        return found

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the whole family on the labelled proxy set, a route a step; only anchors before stitches start.

        Routes are drawn as for a device that all of them fit.
        """
        module, trainable = self.module(self.whole), self._routes if self._open else self._anchors
        pool = sorted(
            (size for size in self._sizes if size.spec in trainable), key=lambda size: size.spec.options.route
        )
        if isinstance(module, EveryRoute):
            module.choose = lambda draws: self.family.route(self._draw(pool, draws).spec.options.route)
        slots = self.slots(self.whole)
        return scatter(state, slots, supervised(module, gather(state, slots), proxy, training, moment))

    def _draw(self, pool: Sequence[Size], draws: torch.Generator) -> Size:
        """Return one of the sizes in the pool, each as likely as any."""
        return pool[int(torch.randint(len(pool), (), generator=draws))]

    def _first(self, moment: Moment) -> int:
        """Return the first round behind the warm-up."""
        # What float arithmetic adds to a whole number of rounds must not make one more of it.
        return ceil(self._config.anchors_alone * moment.rounds - 1e-9) + 1

    def _started(self, found: Mapping[str, Sums]) -> State:
        """Return the global state with the least-squares solution in each of these stitches."""
        solved: State = {}
        for name, total in found.items():
            weight, bias = solve(total, self._config.ridge)
            solved |= {f"stitches.{name}.weight": weight, f"stitches.{name}.bias": bias}
        return {**self._state, **solved}

    def _hold(self, state: State) -> None:
        self._state = state
        self._missing = {pair: spec for pair, spec in self._statistics.items() if not self._have(pair)}

    def _held(self, joint: str) -> Sums:
        return Sums(*(self._state[f"sums.{joint}.{part}"].double() for part in ("gram", "cross")))

    def _have(self, pair: Pair) -> bool:
        return all(
            rows > 0 for rows in numbers([self._state[f"sums.{n}.gram"][-1, -1] for n in self.family.between(pair)])
        )


class SNNetMethod(StitchedMethod):
    """Anchors of all tiers' widths, each stitched to the next larger one; a route is drawn uniformly.

    Raises `SpecError` for depths that the anchors cannot have.
    """

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: SNNetConfig | None = None
    ) -> None:
        config = config or SNNetConfig()
        family = one_way(model, widths, config.depths)
        super().__init__(family, spec_of("snnet", Part(family.widths, config.depths)), training, config)


def check(method: str, config: StitchConfig, conditions: Conditions) -> None:
    """Raise `SpecError` if the server's optimiser would spoil the statistics of devices."""
    if config.initialise == "devices" and conditions.optimiser not in ("fedavg", "fedavgm"):
        raise SpecError(
            f'methods.{method}.initialise "devices": statistics need server.name "fedavg" or "fedavgm", '
            f'not "{conditions.optimiser}", which is not linear'
        )


def files(config: StitchConfig) -> dict[str, Path]:
    """Return the files of trained anchors by what the names of an anchor's tensors begin with."""
    return {f"anchors.{number}.": Path(path) for number, path in enumerate(config.anchors)}


def _measured(family: StitchedFamily, state: State, proxy: Proxy | None) -> dict[str, Sums]:
    """Return the sums of every stitch over the proxy set's training part."""
    if proxy is None or not len(proxy.training):
        raise SpecError(
            'stitches start from the proxy set, and there is none; set data.proxy or initialise = "devices"'
        )
    found: dict[str, Sums] = {}
    for pair in family.meetings:
        module = Statistics(family, family.between(pair))
        load(module.anchors, {n: state[f"anchors.{n}"] for n, _ in module.anchors.named_parameters()})
        counting = ready(module, proxy.training.x).eval()
        batches = [counting(part.x) for part in slices(proxy.training)]
        found |= {name: merge(batch[name] for batch in batches) for name in module.joints}
    return found


def _exported(family: StitchedFamily, costs: Mapping[SubModelSpec, Cost], training: TrainConfig) -> set[SubModelSpec]:
    """Return the anchors and, for each of their widths, the largest other route within its budgets; at most 12."""
    anchors, others = list(costs)[: len(family.widths)], list(costs)[len(family.widths) :]
    largest = []
    for width in family.widths:
        budget = width_cost(family.model, width, training)
        fit = [spec for spec in others if _within(costs[spec], budget)]
        largest += [max(fit, key=lambda spec: costs[spec].training_macs)] if fit else []
    return set([*anchors, *largest][:EXPORTED])


def _within(cost: Cost, budget: Cost) -> bool:
    pairs = (
        (cost.training_macs, budget.training_macs),
        (cost.memory, budget.memory),
        (cost.bytes_down, budget.bytes_down),
    )
    return all(spent <= limit for spent, limit in pairs)


ROW = MethodRow(
    make=SNNetMethod,
    module=build,
    size=Part,
    source="SN-Net (Pan et al., CVPR 2023)",
    idea="a route through networks of several widths, stitched together",
    options=SNNetConfig,
    scheduled=lambda options: bool(options.anchors_alone),
    check=partial(check, "snnet"),
    files=files,
)
