"""The value that names a global model."""

from typing import Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import ModelError
from diastole.models.spec import one_line


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ModelConfig:
    """The global model.

    Attributes:
        name: of the network's family: "cnn" (conv-norm-ReLU-pool blocks and a linear classifier), "resnet" (CIFAR
            style), "vit" (vision transformer) or "transformer" (encoder of sequences).
        input_shape: of one example: `[channels, height, width]`; `[channels, length]` for "cnn" and "transformer";
            `[length]` for a "transformer" with a vocabulary, whose inputs are token numbers.
        classes: rows of the classifier.
        widths: channels of each stage, multiples of `group`; a "cnn" has one convolution a stage, and a transformer one
            width for all.
        blocks: residual or transformer blocks of each stage; not for "cnn".
        group: channels in a normalisation group, and in an attention head.
        patch: height and width of a patch; "vit" only.
        vocabulary: different tokens; "transformer" only, 0 for inputs that are no tokens.

    """

    name: Literal["cnn", "simple-cnn", "resnet", "vit", "transformer"]
    input_shape: tuple[int, ...]
    classes: int = Field(ge=2)
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = ()
    group: int = Field(default=4, ge=1)
    patch: int = Field(default=4, ge=1)
    vocabulary: int = Field(default=0, ge=0)

    def to_json(self) -> str:
        """Return the configuration as compact JSON."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ModelError(f"model {text!r}: {one_line(error)}") from None


_ADAPTER = TypeAdapter(ModelConfig)
