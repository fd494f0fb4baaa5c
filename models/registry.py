"""The methods by name."""

from collections.abc import Sequence

from diastole.models.compressor import Compressor
from diastole.models.conv import ConvCompressor, ConvConfig
from diastole.models.errors import SpecError
from diastole.models.networks import ModelConfig
from diastole.models.training import TrainConfig
from diastole.models.width import WidthCompressor

METHODS = ("width", "conv")


def make_compressor(
    method: str,
    model: ModelConfig,
    widths: Sequence[float],
    training: TrainConfig,
    conv: ConvConfig | None = None,
) -> Compressor:
    """Return a new compressor that offers `widths` of `model`.

    Raises `SpecError` for an unknown method or a width that the model cannot have.
    """
    if method == "width":
        return WidthCompressor(model, widths, training)
    if method == "conv":
        return ConvCompressor(model, widths, training, conv)
    raise SpecError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
