"""Width slicing: HeteroFL (Diao et al., ICLR 2021, section 3)."""

from collections.abc import Iterable, Sequence

from torch import nn

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.ranked import RankConfig, Ranked
from diastole.models.methods.sliced import Sliced, cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.networks.shape import narrowed
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the global model with the first channels of every stage. Raises `SpecError`."""
    return network(model, narrowed(model, spec.width))


class WidthCompressor(Ranked):
    """Sub-models are the first channels of every hidden layer; input and classes are kept whole.

    Each coordinate is averaged over the devices that hold it, weighted by their examples (the reference code
    weighs devices equally), and one that nobody holds keeps its value.

    Left out: the paper's scaler, which divides activations by the width before a normalisation during training:
    GroupNorm cancels it, but for its epsilon (networks without it, simple-cnn and the transformers, would need the
    scaler and go without). And its masked cross-entropy, with classifier rows averaged over those
    devices only that have examples of the class: the server does not learn which labels a device has.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: RankConfig | None = None,
    ) -> None:
        specs = [SubModelSpec("width", width) for width in check_widths(widths)]
        super().__init__(model, specs, SubModelSpec("width"), build, training, config or RankConfig())


class OneSize(Sliced):
    """Plain federated learning of the model at one width: that size is the global model, and there is no other."""

    def __init__(self, model: ModelConfig, width: float, training: TrainConfig) -> None:
        (width,) = check_widths([width])
        spec = SubModelSpec("width", width)
        super().__init__(model, [spec], spec, build, training)


def width_cost(model: ModelConfig, width: float, training: TrainConfig) -> Cost:
    """Return what plain training of the global model at a width costs: the measure of tiers. Raises `SpecError`."""
    return cost_of(build, model, SubModelSpec("width", width), training)


def check_widths(widths: Iterable[float]) -> list[float]:
    """Return the distinct widths, ascending. Raises `SpecError` if one is not in (0, 1] or none is given."""
    found = sorted(set(widths))
    if not found or not all(0 < width <= 1 for width in found):
        raise SpecError(f"widths {found}: each must be in (0, 1], and at least one is needed")
    return found
