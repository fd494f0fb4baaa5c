"""diastole: nested networks whose small parts are trained by everyone and shared to the bit."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.batches import slices
from diastole.models.coordinates import Slot, Slots, gather, in_place, scatter
from diastole.models.hollow import hollow
from diastole.models.loading import load
from diastole.models.losses import Criterion
from diastole.models.method import Weight
from diastole.models.methods.bases.nested import Widths, inside
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.widths.triangular import Triangular
from diastole.models.methods.widths.width import check_widths
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.recalibrate import ready
from diastole.models.seeds import generator
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.start import inside as inside_plain
from diastole.models.start import plain_shapes
from diastole.models.state import State, state_of
from diastole.models.task import Update
from diastole.models.training import Examples, Objective, Step, TrainConfig, fit

LOG = logging.getLogger(__name__)

FOLLOW = 0.25
"""The share of the way that the global model moves towards what it would learn from a proxy set without labels."""


@validated(frozen=True, slots=True, config=STRICT)
class DiastoleConfig:
    """How devices train.

    Attributes:
        nested: whether every device also trains the narrower widths inside its own, in one pass, or its own alone.
        distil: weight of what the narrower widths learn from the widest one's logits.

    """

    nested: bool = True
    distil: float = Field(default=0.0, ge=0)


@validated(frozen=True, slots=True, config=STRICT)
class NestedSize:
    """A size of diastole.

    Attributes:
        width: share of the channels of every layer.
        nested: the widths inside this one, which comes last; empty for this width alone.
        together: whether devices train all of these widths, or this width alone.
        distil: weight of what the narrower widths learn from the widest one's logits.

    """

    width: float = Field(default=1.0, gt=0, le=1)
    nested: Widths = ()
    together: bool = True
    distil: float = Field(default=0.0, ge=0)


def spec_of(width: float, offered: Sequence[float], config: DiastoleConfig | None = None) -> SubModelSpec:
    """Return the spec of a width with the narrower ones of `offered`, ascending, inside it. Raises `SpecError`."""
    config = config or DiastoleConfig()
    size = NestedSize(width, inside(width, offered), config.nested, config.distil)
    return labelled("diastole", size, width)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the first channels of every stage, none of which reads a later width's. Raises `SpecError`."""
    size: NestedSize = spec.options
    nested = size.nested or (size.width,)
    return Diastole(model, size.width, nested, size.together, size.distil)


class Diastole(Triangular, Objective):
    """A triangular network that is trained at all its widths in one pass.

    A network that cannot be triangular (`Triangular.exact` is False) is trained at one width a step, drawn uniformly.
    In the mean this gives the gradient of the mean loss of all widths, for fewer multiply-accumulates than plain
    training takes.
    """

    def __init__(
        self, model: ModelConfig, width: float, nested: Sequence[float], together: bool, distil: float
    ) -> None:
        super().__init__(model, width, nested)
        self.together, self.distil = together, distil
        self.draws = len(self.widths) if together and not (self.exact or distil) else 1

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the mean loss of the nested widths.

        With `distil`, narrower widths also learn from the widest one's logits (in-place distillation, Yu & Huang, ICCV
        2019); both parts of the loss together weigh 1, and each width takes a pass of its own if one pass cannot give
        the logits of all.
        """
        if self.draws > 1:
            logits = [self.at(x, self.widths[step.pick(self.draws)])]
        else:
            logits = self.logits(x) if self.together else [self(x)]
        loss = torch.stack([step.criterion.mean(z, y) for z in logits]).mean()
        if self.distil and len(logits) > 1:
            said = step.criterion.predict(logits[-1].detach())
            taught = self.distil * matching(logits[:-1], said, step.criterion) * (1 - 1 / len(logits))
            loss = (loss + taught) / (1 + self.distil * (1 - 1 / len(logits)))
        return loss


def matching(students: Sequence[Tensor], teacher: Tensor, criterion: Criterion) -> Tensor:
    """Return the mean Kullback-Leibler divergence of students' logits from a teacher's probabilities `[n, classes]`.

    Of outputs that are no logits `[n, classes]` it is `Criterion.towards`.
    """
    if teacher.ndim > 2 or not criterion.classified:
        return torch.stack([criterion.towards(z, teacher) for z in students]).mean()
    return torch.stack([criterion.over(F.kl_div(z.log_softmax(1), teacher, reduction="none")) for z in students]).mean()


class DiastoleMethod(Sliced):
    """Sub-models are the first channels of every layer, which compute the same in every larger model.

    The method has two parts, each known on its own; docs/methods/diastole.md says what each gains:

    * Layers are triangular in blocks (`Triangular`; Vu et al., CVPR Workshops 2020), so the small models are parts of
      the large one and not merely slices of its weights, and stay so whatever a device sends. What many small devices
      learn reaches the large model as it is.
    * One pass over a batch trains all nested widths, for the multiply-accumulates of one.

    Its recipe balances the devices' softmax, against the drift that comes from their different labels, and gives the
    server's optimiser a momentum of 0.5.

    Each coordinate is averaged over the devices that hold it, weighted by their examples. On a labelled proxy set the
    server trains like a device that holds the whole model. Without labels it distils: every nested width learns the
    mean of the returned sub-models' probabilities for the proxy examples, weighted by the devices' examples (FedDF, Lin
    et al., NeurIPS 2020, distils the softmax of the unweighted mean of their logits), and the global model moves a
    quarter of the way there, because a few examples give a direction as noisy as one device's.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: DiastoleConfig | None = None,
    ) -> None:
        offered = check_widths(widths)
        specs = [spec_of(width, offered, config) for width in offered]
        super().__init__(model, specs, spec_of(1.0, offered, config), training)
        if len(offered) > 1 and not self._hollow(self.whole).exact:
            _tell(model)
        self._proxy: Proxy | None = None
        self._criterion = training.criterion
        self._said: Tensor | None = None

    def initial(self, seed: int) -> State:
        """Return the parameters of a freshly initialised whole model, in which no channel reads a later width's.

        Weights of channels that read fewer others for this reason are larger (`Triangular.rescaled`).
        """
        return self._hollow(self.whole).rescaled(initial_state(self._model, seed))

    def start(self, state: State, given: State) -> State:
        """Return the state with the given tensors, in which no channel reads a later width's; nothing is enlarged."""
        return self._hollow(self.whole).zeroed(super().start(state, given))

    def origins(self) -> Slots:
        """Return the plain network's tensors, which are the global ones."""
        return in_place(inside_plain(self._model, plain_shapes(self._model)))

    def prepare(self, state: State, proxy: Proxy | None, moment: Moment) -> State:
        """Hold the global state, and the proxy set if it has no labels."""
        self._proxy, self._said = (None if proxy is None or proxy.labelled else proxy), None
        return super().prepare(state, proxy, moment)

    def resume(self, state: State, proxy: Proxy | None, moment: Moment, memory: State) -> None:
        """Hold the global state, and the proxy set if it has no labels."""
        self.prepare(state, proxy, moment)

    def needs_all(self, moment: Moment) -> bool:
        """Return whether the server will ask the sub-models about a proxy set without labels."""
        return self._proxy is not None

    def weigh(self, updates: Iterable[Update], moment: Moment) -> Iterator[tuple[Update, Weight]]:
        """Weigh each update by its examples; ask the sub-models about a proxy set that has no labels."""
        if self._proxy is not None and (updates := list(updates)):
            total = sum(update.examples for update in updates)
            said = [update.examples / total * self._ask(update, self._proxy.training) for update in updates]
            self._said = torch.stack(said).sum(0)
        return super().weigh(updates, moment)

    def learn(self, state: State, proxy: Proxy, training: TrainConfig, moment: Moment) -> State:
        """Train every width on the labelled proxy set, or on the sub-models' probabilities for the unlabelled one."""
        if proxy.labelled:
            return super().learn(state, proxy, training, moment)
        if self._said is None:
            return state
        slots, module = self.slots(self.whole), cast(Triangular, self.module(self.whole))
        load(module, gather(state, slots))
        with torch.enable_grad():
            x = proxy.training.x
            numbered = Examples(x, torch.arange(len(proxy.training), device=x.device))
            fit(_Follower(module, self._said, self._criterion), numbered, training, generator(moment.seed))
        there = scatter(state, slots, state_of(module))
        return {name: tensor.lerp(there[name], FOLLOW) for name, tensor in state.items()}

    def _locate(self, spec: SubModelSpec) -> Slots:
        """Return where a sub-model lies: the first channels, without the blocks of weights that are always zero."""
        module = self._hollow(spec)
        plain = inside_plain(self._model, module.shapes)
        return {own: Slot(name, plain[name].part(region)) for own, (name, region) in module.places().items()}

    def _hollow(self, spec: SubModelSpec) -> Triangular:
        """Return a sub-model without values."""
        with hollow():
            return cast(Triangular, self.module(spec))

    def _ask(self, update: Update, examples: Examples) -> Tensor:
        """Return a sub-model's predictions for each example, `[n, ...]`."""
        with hollow():
            module = self.module(update.spec)
        module = ready(load(module, update.state), examples.x).eval()
        with torch.no_grad():
            return torch.cat([self._criterion.predict(module(part.x)) for part in slices(examples)])


class _Follower(Objective):
    """A nested network in which every width learns the rows of `said`, predictions; labels are row numbers."""

    def __init__(self, network: Triangular, said: Tensor, criterion: Criterion) -> None:
        super().__init__()
        self.network, self.said, self.criterion = network, said, criterion

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the mean divergence of all widths from `said`."""
        return matching(self.network.logits(x), self.said[y], self.criterion)


@cache
def _tell(model: ModelConfig) -> None:
    """Say once a process that a network is trained in another way than this method's name promises."""
    LOG.warning(
        "model %s: no triangular form (it mixes all channels, as LayerNorm does, or does something behind its last "
        "layer), so its widths only share weights: devices train one of them a step, as in FjORD",
        model.factory or model.name,
    )


ROW = MethodRow(
    make=DiastoleMethod,
    module=build,
    size=NestedSize,
    source="this project",
    idea="the first channels of every layer, which never read later ones",
    options=DiastoleConfig,
    unlabelled=lambda options: True,
    recipe={"training.balance": 0.5, "server.name": "fedavgm", "server.beta1": 0.5},
)
