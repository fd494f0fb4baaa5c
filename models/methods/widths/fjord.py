"""FjORD: ordered dropout (Horvath et al., NeurIPS 2021, sections 3 and 4)."""

from collections.abc import Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.methods.bases.nested import Nested, Widths, inside
from diastole.models.methods.bases.ranked import RankConfig, Ranked
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.widths.width import check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import Objective, Step, TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class FjordConfig(RankConfig):
    """How FjORD's devices train, and which channels come first.

    Attributes:
        distil: narrower widths learn from the widest one of the device, by self-distillation.

    """

    distil: bool = False


@validated(frozen=True, slots=True, config=STRICT)
class Ordered:
    """A size of FjORD.

    Attributes:
        width: share of the channels of every layer.
        nested: the widths that are trained inside this one, which comes last; empty for this width alone.
        distil: weight of what the narrower widths learn from this one.

    """

    width: float = Field(default=1.0, gt=0, le=1)
    nested: Widths = ()
    distil: float = Field(default=0.0, ge=0)


def spec_of(width: float, offered: Sequence[float], distil: float = 0.0) -> SubModelSpec:
    """Return the spec of a width that also trains the narrower ones of `offered`, ascending. Raises `SpecError`."""
    return labelled("fjord", Ordered(width, inside(width, offered), distil), width, distil=distil)


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the first channels of every stage, trained at every nested width. Raises `SpecError`."""
    size: Ordered = spec.options
    return Fjord(model, size.width, size.nested or (size.width,), size.distil)


class Fjord(Nested, Objective):
    """A model that takes each training step at one of its nested widths, drawn uniformly and the same in all layers."""

    def __init__(self, model: ModelConfig, width: float, nested: Sequence[float], distil: float) -> None:
        super().__init__(model, width, nested)
        self.widths, self.distil = tuple(nested), distil
        self.draws = len(self.widths)

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the loss at the drawn width.

        With distillation: the loss at the full width, plus `distil` times the cross-entropy between the logits of the
        drawn width and those of the full width, which get no gradient from it (for other targets than one class an
        example, `Criterion.towards`). If the full width is drawn there is no second pass, because it cannot learn from
        itself (the gradient is zero).
        """
        drawn = self.widths[step.pick(len(self.widths))]
        if not self.distil:
            return step.criterion.mean(self.at(x, drawn), y)
        teacher = self(x)
        loss = step.criterion.mean(teacher, y)
        if drawn == self.width:
            return loss
        student = self.at(x, drawn)
        if not len(step.criterion.labels(y)):
            return loss + self.distil * step.criterion.towards(student, step.criterion.predict(teacher))
        return loss + self.distil * F.cross_entropy(student, teacher.detach().softmax(1))


class FjordMethod(Ranked):
    """Sub-models are the first channels of every hidden layer; each device trains all widths up to its own.

    A device of width p_max draws, for each batch, one p uniformly from the offered widths up to p_max, and trains
    the first channels of each layer at that width. The paper's aggregation overwrites, from the largest p to the
    smallest, the block of p by the mean over devices with p_max >= p, weighted by their examples. A coordinate whose
    smallest block is that of p is held by exactly these devices, so this is the mean over those who hold a
    coordinate, as in every other method here. The server's own training on its proxy set draws widths too.

    What differs from the paper: GroupNorm takes the place of batch normalisation, which has statistics for each p;
    widths are rounded to whole groups, not up; and devices download their own width only (the reference implementation
    sends them the whole model).
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: FjordConfig | None = None,
    ) -> None:
        config, offered = config or FjordConfig(), check_widths(widths)
        specs = [spec_of(width, offered, config.distil) for width in offered]
        super().__init__(model, specs, spec_of(1.0, offered, config.distil), training, config)


ROW = MethodRow(
    make=FjordMethod,
    module=build,
    size=Ordered,
    source="FjORD (Horvath et al., NeurIPS 2021)",
    idea="the first channels of every layer, trained at every narrower width too",
    options=FjordConfig,
)
