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
            style) or "mobilenet" (MobileNetV3 style, for small images).
        input_shape: of one example: `[channels, height, width]`, or `[channels, length]` for "cnn".
        classes: rows of the classifier.
        widths: channels of each stage, multiples of `group`; a "cnn" has one convolution a stage.
        blocks: residual blocks of each stage; "resnet" and "mobilenet" only.
        group: channels in a normalisation group.
        kernel: size of the depth-wise kernels; "mobilenet" only.
        expand: channels inside a block over those that enter it; "mobilenet" only.

    """

    name: Literal["cnn", "resnet", "mobilenet"]
    input_shape: tuple[int, ...]
    classes: int = Field(ge=2)
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = ()
    group: int = Field(default=4, ge=1)
    kernel: Literal[3, 5, 7] = 7
    expand: float = Field(default=6.0, ge=1)

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
