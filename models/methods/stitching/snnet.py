"""SN-Net: stitchable networks (Pan et al., CVPR 2023), in a federation.

The paper takes pretrained anchors; here devices train them first, for a share of the run (`warmup`), each device an
anchor that fits it. Then every stitch gets its least-squares start, and devices train routes through the family.

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
from math import ceil
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.compressor import Contribution, Offer, Patch, Proxy, gather, scatter, supervised
from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.bases.sliced import Build, Sliced
from diastole.models.methods.stitching.routes import Depths, Family, Pair, one_way
from diastole.models.methods.stitching.stitched import Statistics, Supernet, module_of
from diastole.models.methods.stitching.stitches import Sums, merge, solve
from diastole.models.methods.widths.width import width_cost
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig, slices

EXPORTED = 12


@validated(frozen=True, slots=True, config=STRICT)
class StitchConfig:
    """How stitches come in.

    Attributes:
        warmup: share of the run's rounds in which only anchors are trained.
        initialise: where stitches get their least-squares start from: the server's "proxy" set, whose labels are not
            looked at, the "devices", or "none" for a random start.
        statistics: rounds after the warm-up, at most, in which devices return statistics ("devices" only). A pair of
            anchors that no device could hold by then keeps stitches with a random start.
        ridge: of the least squares, a share of the mean square of the activations.

    """

    warmup: float = Field(default=0.3, ge=0, lt=1)
    initialise: Literal["proxy", "devices", "none"] = "proxy"
    statistics: int = Field(default=1, ge=1)
    ridge: float = Field(default=1e-6, ge=0)


@validated(frozen=True, slots=True, config=STRICT)
class SNNetConfig(StitchConfig):
    """How stitches come in, and how deep anchors are.

    Attributes:
        depths: for each width of the tiers, from the smallest to the largest, how many blocks of each stage its anchor
            has: the first ones; no fewer than a narrower anchor's. Empty if all anchors have all blocks.

    """

    depths: Depths = ()


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the module of a sub-model: `nested` and `depths` are its anchors'. Raises `SpecError`."""
    return module_of(one_way(model, spec.nested, spec.depths), spec)


class StitchedCompressor(Sliced):
    """What SN-Net and its second version share.

    A sub-model is a route, and global tensors are those of all anchors and all stitches. `prepare` cannot change the
    global state, so a stitch's start is kept beside it, as what is to be added to the global tensor.
    """

    def __init__(self, family: Family, common: SubModelSpec, build: Build, training: TrainConfig, config: StitchConfig):
        """Offer every route of `family`; `common` is what all specs have in common."""
        self.family, self._config = family, config
        self._statistics: dict[Pair, SubModelSpec] = {}
        if config.initialise == "devices":
            self._statistics = {pair: replace(common, bases=pair) for pair in family.meetings}
        routes = [replace(common, route=k + 1) for k in range(len(family.routes))]
        super().__init__(family.model, [*routes, *self._statistics.values()], common, build, training)
        costs = {offer.spec: offer.cost for offer in self._offers}
        shown = _exported(family, {spec: costs[spec] for spec in routes}, training)
        self._offers = [replace(offer, exported=offer.spec in shown) for offer in self._offers]
        self._anchors = set(routes[: len(family.widths)])
        self._routes = set(routes)
        self._missing = dict(self._statistics)
        self._shift: State = {}
        self._open = False

    def initial(self, seed: int) -> State:
        """Return freshly initialised anchors and stitches, and sums that stand for no examples."""
        state = super().initial(seed)
        for spec in self._statistics.values():
            for name, tensor in self.module(spec).named_parameters():
                state.setdefault(name, torch.zeros_like(tensor))
        return state

    def assign(self, fits: Mapping[str, Sequence[Offer]], moment: Moment) -> Mapping[str, Offer]:
        """Give each device one of the routes that fit it, drawn anew each round; only anchors before stitches start.

        In rounds for statistics a device that can gives the pair of anchors that the fewest devices before it give.
        """
        gathering = self._missing if not self._open and moment.round >= self._first(moment) else {}
        counts, given = dict.fromkeys(gathering.values(), 0), {}
        for device, offers in fits.items():
            able = [offer for offer in offers if offer.spec in counts]
            if able:
                given[device] = min(able, key=lambda offer: counts[offer.spec])
                counts[given[device].spec] += 1
                continue
            pool = [offer for offer in offers if offer.spec in (self._routes if self._open else self._anchors)]
            given[device] = self._draw(pool or offers, generator(moment.seed, "route", device))
        return given

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> None:
        """Start the stitches, if the warm-up is over and what that needs is there.

        Raises `SpecError` without a proxy set if the start comes from there.
        """
        self._state = state
        self._missing = {pair: spec for pair, spec in self._statistics.items() if not self._have(spec)}
        late = moment.round - self._first(moment)
        if self._open or late < 0:
            return
        if self._config.initialise == "proxy":
            self._start(_measured(self.family, state, proxy))
        elif self._config.initialise == "devices":
            if self._missing and late < self._config.statistics:
                return
            ready = [pair for pair in self._statistics if pair not in self._missing]
            self._start({name: self._held(name) for pair in ready for name in self.family.between(pair)})
        self._open = True

    def memory(self) -> State:
        """Return what is added to the stitches, if they have started."""
        return {**self._shift, "open": torch.ones(1)} if self._open else {}

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Take the stitches' start as it is."""
        self._state, self._open = state, "open" in memory
        self._missing = {pair: spec for pair, spec in self._statistics.items() if not self._have(spec)}
        self._shift = {name: tensor for name, tensor in memory.items() if name != "open"}

    def compress(self, spec: SubModelSpec) -> State:
        """Return the parts of anchors and stitches that the route takes."""
        return self._sent(self._state, spec)

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Return the global tensors of a route with what the device changed; of statistics the sums alone."""
        slots = self.slots(spec)
        if spec in self._statistics.values():
            return {name: Patch(slots[name].region, state[name]) for name in slots if name.startswith("sums.")}
        return {name: Patch(slots[name].region, each) for name, each in self._back(self._state, state).items()}

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train the whole family on the labelled proxy set, a route a step; only anchors before stitches start.

        Routes are drawn as for a device that all of them fit.
        """
        module, trainable = self.module(self.whole), self._routes if self._open else self._anchors
        pool = sorted((offer for offer in self._offers if offer.spec in trainable), key=lambda offer: offer.spec.route)
        if isinstance(module, Supernet):
            module.choose = lambda draws: self.family.route(self._draw(pool, draws).spec.route)
        trained = supervised(module, self._sent(state, self.whole), proxy, training, moment)
        return scatter(state, self.slots(self.whole), self._back(state, trained))

    def _draw(self, pool: Sequence[Offer], draws: torch.Generator) -> Offer:
        """Return one of the sizes in the pool, each as likely as any."""
        return pool[int(torch.randint(len(pool), (), generator=draws))]

    def _first(self, moment: Moment) -> int:
        """Return the first round behind the warm-up."""
        # What float arithmetic adds to a whole number of rounds must not make one more of it.
        return ceil(self._config.warmup * moment.rounds - 1e-9) + 1

    def _start(self, found: Mapping[str, Sums]) -> None:
        """Keep what moves each stitch from the global state to the least-squares solution."""
        for name, total in found.items():
            weight, bias = solve(total, self._config.ridge)
            for key, solution in ((f"stitches.{name}.weight", weight), (f"stitches.{name}.bias", bias)):
                self._shift[key] = solution - self._state[key]

    def _sent(self, state: State, spec: SubModelSpec) -> State:
        sent = gather(state, self.slots(spec))
        return {name: tensor + self._shift[name] if name in self._shift else tensor for name, tensor in sent.items()}

    def _back(self, state: State, trained: State) -> State:
        """Return the global values of trained tensors: what was sent and comes back unchanged is exactly as it was."""
        return {
            name: state[name] + (tensor - (state[name] + self._shift[name])) if name in self._shift else tensor
            for name, tensor in trained.items()
        }

    def _held(self, joint: str) -> Sums:
        return Sums(*(self._state[f"sums.{joint}.{part}"].double() for part in ("gram", "cross")))

    def _have(self, spec: SubModelSpec) -> bool:
        return all(self._held(name).rows > 0 for name in self.family.between(spec.bases))


class SNNetCompressor(StitchedCompressor):
    """Anchors of all tiers' widths, each stitched to the next larger one; a route is drawn uniformly.

    Raises `SpecError` for depths that the anchors cannot have.
    """

    def __init__(
        self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, config: SNNetConfig | None = None
    ) -> None:
        config = config or SNNetConfig()
        family = one_way(model, widths, config.depths)
        common = SubModelSpec("snnet", nested=family.widths, depths=config.depths)
        super().__init__(family, common, build, training, config)


def _measured(family: Family, state: State, proxy: Proxy | None) -> dict[str, Sums]:
    """Return the sums of every stitch over the proxy set's training part."""
    if proxy is None or not len(proxy.training):
        raise SpecError(
            'stitches start from the proxy set, and there is none; set data.proxy or initialise = "devices"'
        )
    found: dict[str, Sums] = {}
    for pair in family.meetings:
        module = Statistics(family, family.between(pair))
        module.anchors.load_state_dict({n: state[f"anchors.{n}"] for n, _ in module.anchors.named_parameters()})
        batches = [module.eval()(part.x) for part in slices(proxy.training)]
        found |= {name: merge(batch[name] for batch in batches) for name in module.joints}
    return found


def _exported(family: Family, costs: Mapping[SubModelSpec, Cost], training: TrainConfig) -> set[SubModelSpec]:
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
