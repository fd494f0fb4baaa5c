"""Width slicing: HeteroFL (Diao et al., ICLR 2021, section 3)."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from diastole.models.compressor import IndexCompressor, Offer, Region
from diastole.models.cost import measure
from diastole.models.errors import SpecError
from diastole.models.networks import ModelConfig, build
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig

T = TypeVar("T")


class WidthCompressor(IndexCompressor):
    """Sub-models are the first channels of every hidden layer; input and classes are kept whole.

    Each coordinate is averaged over the devices that hold it, weighted by their examples (the reference code
    weighs devices equally), and one that nobody holds keeps its value. The paper's scaler divides activations
    before a normalisation, which cancels it, so it is left out; classifier rows are averaged over all devices.
    """

    def __init__(self, model: ModelConfig, widths: Sequence[float], training: TrainConfig) -> None:
        self._model = model
        self._regions: dict[SubModelSpec, dict[str, Region]] = {}
        offers = []
        for width in check_widths(widths):
            spec = SubModelSpec("width", width)
            with torch.device("meta"):
                shapes = {name: weight.shape for name, weight in build(model, spec).named_parameters()}
            # A flattened map is channel-major, so a prefix of channels is a prefix of the classifier's inputs.
            self._regions[spec] = {name: Region.prefix(shape) for name, shape in shapes.items()}
            offers.append(Offer(spec, measure(model, spec, training)))
        super().__init__(offers)

    def regions(self, spec: SubModelSpec) -> Mapping[str, Region]:
        """Return the prefix of every axis. Raises `SpecError` for a width that is not on offer."""
        return lookup(self._regions, spec)


def check_widths(widths: Sequence[float]) -> list[float]:
    """Return the distinct widths. Raises `SpecError` if one is not in (0, 1] or none is given."""
    wrong = [width for width in widths if not 0 < width <= 1]
    if wrong or not widths:
        raise SpecError(f"widths {list(widths)}: each must be in (0, 1], and at least one is needed")
    return sorted(set(widths))


def lookup(table: Mapping[SubModelSpec, T], spec: SubModelSpec) -> T:
    """Return what `table` has for `spec`. Raises `SpecError` naming the specs it knows."""
    if spec not in table:
        raise SpecError(f"no sub-model {spec.label!r}; on offer: {', '.join(known.label for known in table)}")
    return table[spec]
