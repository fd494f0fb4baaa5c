"""Width slicing: HeteroFL (Diao et al., ICLR 2021, section 3)."""

from collections.abc import Iterable, Sequence

from pydantic.dataclasses import dataclass as validated

from diastole.models.cost import Cost
from diastole.models.errors import SpecError
from diastole.models.methods.bases.ranked import RankConfig, Ranked
from diastole.models.methods.registry import MethodRow, cost_of
from diastole.models.methods.widths.heterofl import HeteroConfig, Masking, Width, build, check, check_head, classes
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import STRICT, SubModelSpec, labelled
from diastole.models.training import TrainConfig


@validated(frozen=True, slots=True, config=STRICT)
class WidthConfig(HeteroConfig, RankConfig):
    """How HeteroFL's devices train, and which channels come first."""


def spec_of(width: float, config: HeteroConfig | None = None) -> SubModelSpec:
    """Return the spec of a width, plain unless `config` says otherwise."""
    masked, scaler = (config.masked, config.scaler) if config else (False, False)
    return labelled("width", Width(width, masked, scaler), width)


class WidthMethod(Masking, Ranked):
    """Sub-models are the first channels of every hidden layer; input and classes are kept whole.

    Each coordinate is averaged over the devices that hold it, weighted by their examples (the reference code weighs
    devices equally), and a coordinate that no device holds keeps its value.

    The authors' code narrows an attention inside of each head; here whole heads are left out.

    With `masked`, devices train by the paper's masked cross-entropy, and each row of the classifier is averaged only
    over devices that have examples of its class. With `scaler`, activations are divided by the share of a layer's
    channels during training, as in the paper. Both are in `models/methods/widths/heterofl.py`, and off unless asked
    for.
    """

    def __init__(
        self,
        model: ModelConfig,
        widths: Sequence[float],
        training: TrainConfig,
        config: WidthConfig | None = None,
    ) -> None:
        """Offer the widths. Raises `SpecError` for a width that cannot be built, or a model that cannot be `masked`."""
        config = config or WidthConfig()
        check_head(config, model)
        specs = [spec_of(width, config) for width in check_widths(widths)]
        super().__init__(model, specs, spec_of(1.0, config), training, config)


def width_cost(model: ModelConfig, width: float, training: TrainConfig) -> Cost:
    """Return the cost of plain training of the global model at a width, which measures tiers. Raises `SpecError`."""
    return cost_of(model, spec_of(width), training)


def check_widths(widths: Iterable[float]) -> list[float]:
    """Return the distinct widths, ascending. Raises `SpecError` if one is not in (0, 1] or none is given."""
    found = sorted(set(widths))
    if not found or not all(0 < width <= 1 for width in found):
        raise SpecError(f"widths {found}: each must be in (0, 1], and at least one is needed")
    return found


ROW = MethodRow(
    make=WidthMethod,
    module=build,
    size=Width,
    source="HeteroFL (Diao et al., ICLR 2021)",
    idea="the first channels of every layer",
    options=WidthConfig,
    classes=classes,
    check=check,
    recipe={"training.clip": 1.0, "training.schedule": "step:0.375,0.625"},
)
