"""Width slicing: HeteroFL (Diao et al., ICLR 2021, section 3)."""

from collections.abc import Iterable, Sequence

from pydantic.dataclasses import dataclass as validated
from torch import nn

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.bases.ranked import RankConfig, Ranked
from diastole.models.methods.bases.sliced import Sliced, cost_of
from diastole.models.methods.widths.heterofl import HeteroConfig, HeteroFL, Masking, objective
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.networks.shape import narrowed
from diastole.models.spec import STRICT, SubModelSpec
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class WidthConfig(HeteroConfig, RankConfig):
    """How HeteroFL's devices train, and which channels come first."""


def build(model: ModelConfig, spec: SubModelSpec) -> nn.Module:
    """Return the global model with the first channels of every stage. Raises `SpecError`."""
    if not spec.objective:
        return network(model, narrowed(model, spec.width))
    masked, scaler = spec.objective
    return HeteroFL(model, spec.width, bool(masked), bool(scaler))


class WidthCompressor(Masking, Ranked):
    """Sub-models are the first channels of every hidden layer; input and classes are kept whole.

    Each coordinate is averaged over the devices that hold it, weighted by their examples (the reference code
    weighs devices equally), and one that nobody holds keeps its value.

    With `masked`, devices train by the paper's masked cross-entropy, and the classifier's rows are averaged over those
    alone that have examples of the class. With `scaler`, activations are divided by the share of a layer's channels
    during training, as in the paper. Both are in `models/methods/widths/heterofl.py`, and off unless asked for.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: WidthConfig | None = None,
    ) -> None:
        """Offer the widths. Raises `SpecError` for one that cannot be, and for what cannot be `masked`."""
        config = config or WidthConfig()
        aim = objective(config, model, training)
        specs = [SubModelSpec("width", width, objective=aim) for width in check_widths(widths)]
        super().__init__(model, specs, SubModelSpec("width", objective=aim), build, training, config)


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
