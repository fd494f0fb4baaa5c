"""The value that names a global model."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.models.errors import ModelError
from diastole.models.spec import STRICT, one_line

Named = tuple[Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)], ...]
"""Blocks of a custom model by their paths in it, stage by stage."""


@validated(frozen=True, slots=True, config=STRICT)
class ModelConfig:
    """The global model.

    Attributes:
        name: of the network's family: "cnn" (conv-norm-ReLU-pool blocks and a linear classifier), "simple-cnn"
            (pfl-research's, without normalisation), "resnet" (CIFAR style), "mobilenet" (MobileNetV3 style, for small
            images), "vit" (vision transformer), "transformer" (encoder of sequences) or "custom" (any module, made by
            `factory`).
        input_shape: of one example: `[channels, height, width]`; `[channels, length]` for "cnn" and "transformer";
            `[length]` for a "transformer" with a vocabulary, whose inputs are token numbers.
        classes: rows of the classifier.
        widths: channels of each stage, multiples of `group`; a "cnn" has one convolution a stage, and a transformer one
            width for all.
        blocks: residual or transformer blocks of each stage; not for "cnn".
        group: channels in a normalisation group, and in an attention head; for "custom", channels that are kept or
            left out together.
        patch: height and width of a patch; "vit" only.
        vocabulary: different tokens; "transformer" only, 0 for inputs that are no tokens.
        kernel: size of the depth-wise kernels; "mobilenet" only.
        expand: channels inside a block over those that enter it; "mobilenet" only.
        factory: "package.module:function", which takes no arguments and returns the module; "custom" only. It is
            imported only where whoever started the process has allowed it (`models/networks/custom/own.py`).
        stages: blocks of each stage by their paths in the module, in the order in which they run; "custom" only, and
            empty for a module that is not cut in depth (`models/networks/custom/cuts.py`).

    """

    name: Literal["cnn", "simple-cnn", "resnet", "mobilenet", "vit", "transformer", "custom"]
    input_shape: tuple[int, ...]
    classes: int = Field(ge=2)
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = ()
    group: int = Field(default=4, ge=1)
    patch: int = Field(default=4, ge=1)
    vocabulary: int = Field(default=0, ge=0)
    factory: str = Field(default="", pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$")
    kernel: Literal[3, 5, 7] = 7
    expand: float = Field(default=6.0, ge=1)
    stages: Named = ()

    def __post_init__(self) -> None:
        """Refuse named blocks of a network that knows its own."""
        refuse_stages(self.name, self.stages)

    def to_json(self) -> str:
        """Return the configuration as compact JSON; without stages as before there were any."""
        return _ADAPTER.dump_json(self, exclude=None if self.stages else {"stages"}).decode()

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ModelError(f"model {text!r}: {one_line(error)}") from None


def refuse_stages(name: str, stages: Named) -> None:
    """Raise `ValueError` if a model that is not a user's own names blocks."""
    if stages and name != "custom":
        raise ValueError(f'stages: only model "custom" takes them; "{name}" has stages of its own')


_ADAPTER = TypeAdapter(ModelConfig)
