"""The value that names a global model."""

from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from diastole.models.errors import ModelError
from diastole.models.spec import STRICT, one_line

LONGEST_JSON = 1 << 16
"""The most characters of a configuration as JSON; the largest here have some hundreds."""

AXES, STAGES, BLOCKS, VALUES = 5, 256, 1024, 1 << 24
"""The most that are accepted: axes of an example, stages, blocks of all stages together, and values of an example."""

Channels = Annotated[int, Field(le=1 << 14)]
Length = Annotated[int, Field(le=VALUES)]
Count = Annotated[int, Field(le=BLOCKS)]
Path = Annotated[str, Field(min_length=1, max_length=300)]
Named = Annotated[
    tuple[Annotated[tuple[Path, ...], Field(min_length=1, max_length=BLOCKS)], ...], Field(max_length=STAGES)
]
"""Blocks of a custom model by their paths in it, stage by stage."""

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=300)], ...], Field(max_length=BLOCKS)]
"""Patterns of tensors' names, with `*`, `?` and `[...]` as in names of files."""

Mixer = Literal["depthwise", "partial", "inception"]
"""How a "convnext" mixes places."""

Attention = Literal["written", "fused"]
"""How a transformer computes attention."""

Option = tuple[
    Annotated[str, Field(min_length=1, max_length=64)],
    bool | Annotated[int, Field(ge=-(1 << 53), le=1 << 53)] | float | Annotated[str, Field(max_length=1000)],
]


@validated(frozen=True, slots=True, config=STRICT)
class ModelConfig:
    """The global model.

    Attributes:
        name: of the kind of network: "cnn" (conv-norm-ReLU-pool blocks and a linear classifier), "simple-cnn"
            (pfl-research's, without normalisation), "resnet" (CIFAR style), "mobilenet" (MobileNetV3 style, for small
            images), "convnext" (ConvNeXt style, for small images), "vit" (vision transformer), "transformer" (encoder
            of sequences), "custom" (any module, made by `factory`), or one that another package brings. Whether there
            is such a network is checked when it is built.
        input_shape: of one example: `[channels, height, width]`; `[channels, length]` for "cnn" and "transformer";
            `[length]` for a "transformer" with a vocabulary, whose inputs are token numbers.
        classes: rows of the classifier; of a network that gives values, how many.
        widths: channels of each stage, multiples of `group`; a "cnn" has one convolution a stage, and a transformer one
            width for all.
        blocks: residual or transformer blocks of each stage; not for "cnn".
        group: channels in a normalisation group, and in an attention head; for "custom", channels that are kept or
            left out together.
        patch: height and width of a patch; "vit" only.
        vocabulary: number of different tokens; 0 for inputs that are no tokens. "transformer" and "custom" only; a
            "custom" module gets tokens as int64, as nn.Embedding takes them.
        kernel: size of the depth-wise kernels; "mobilenet" and "convnext" only.
        expand: ratio of the channels inside a block to those that enter it; "mobilenet" and "convnext" only.
        mixer: how places are mixed: by each channel's own kernel ("depthwise"), by a dense convolution of a quarter of
            the channels ("partial"), or by kernels of three shapes ("inception"); "convnext" only.
        attention: "written" out as products, or "fused" in torch's kernel, which needs less memory and is faster for
            many tokens; the results agree within float tolerance. "transformer" and "vit" only.
        block: of narrower models, channels are multiples of it where that leaves one block at least: the floats in a
            vector of the devices' processors; 0 for any multiple of `group`. Channels inside a mobilenet's or a
            convnext's block follow from those of the stages.
        factory: "package.module:function", which takes no arguments and returns the module; "custom" only. A process
            imports it only if the person who started the process has allowed it (`models/networks/custom/own.py`).
        stages: blocks of each stage by their paths in the module, in the order in which they run; "custom" only, and
            empty for a module that is not cut in depth (`models/networks/custom/cuts.py`).
        options: further settings by name, for a network that another package brings.
        outputs: the shape of what the network gives for one example, if that is not `[classes]`; "custom" only.
        frozen: patterns of the names of parameters that nobody trains; for "custom", of the names in the module.

    """

    name: str = Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    input_shape: tuple[Length, ...] = Field(max_length=AXES)
    classes: int = Field(ge=1, le=1 << 20)
    widths: tuple[Channels, ...] = Field(default=(16, 32), max_length=STAGES)
    blocks: tuple[Count, ...] = Field(default=(), max_length=STAGES)
    group: int = Field(default=4, ge=1, le=1 << 14)
    patch: int = Field(default=4, ge=1, le=1 << 14)
    vocabulary: int = Field(default=0, ge=0, le=VALUES)
    factory: str = Field(default="", max_length=300, pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$")
    kernel: Literal[3, 5, 7] = 7
    expand: float = Field(default=6.0, ge=1, le=64)
    stages: Named = ()
    options: tuple[Option, ...] = Field(default=(), max_length=64)
    outputs: tuple[Length, ...] = Field(default=(), max_length=AXES)
    frozen: Patterns = ()
    mixer: Mixer = "depthwise"
    attention: Attention = "written"
    block: int = Field(default=0, ge=0, le=64)

    def __post_init__(self) -> None:
        """Raise `ValueError` for `stages` of a network that has its own, and for sizes that are too large together."""
        refuse_stages(self.name, self.stages)
        if prod(max(1, size) for size in self.input_shape) > VALUES:
            raise ValueError(f"input_shape: {list(self.input_shape)} has more than {VALUES} values")
        if max(sum(self.blocks), sum(len(stage) for stage in self.stages)) > BLOCKS:
            raise ValueError(f"more than {BLOCKS} blocks")
        if prod(max(1, size) for size in self.outputs) > VALUES:
            raise ValueError(f"outputs: {list(self.outputs)} has more than {VALUES} values")

    @property
    def gives(self) -> tuple[int, ...]:
        """The shape of what the network gives for one example."""
        return self.outputs or (self.classes,)

    @property
    def tokens(self) -> bool:
        """Whether the module takes whole numbers, int64."""
        return self.name == "custom" and self.vocabulary > 0

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's inputs."""
        return torch.int64 if self.tokens else torch.float32

    def blank(self, count: int) -> Tensor:
        """Return inputs `[count, *input_shape]` of zeros."""
        return torch.zeros(count, *self.input_shape, dtype=self.dtype)

    def drawn(self, count: int, draws: torch.Generator) -> Tensor:
        """Return random inputs `[count, *input_shape]`: normal values, or tokens of the vocabulary."""
        shape = (count, *self.input_shape)
        return (
            torch.randint(self.vocabulary, shape, generator=draws).to(self.dtype)
            if self.vocabulary
            else torch.randn(shape, generator=draws)
        )

    def to_json(self) -> str:
        """Return the configuration as compact JSON, without the later settings where they have their defaults."""
        plain = {key for key, default in LATER.items() if getattr(self, key) == default}
        return _ADAPTER.dump_json(self, exclude=plain).decode()

    @staticmethod
    def of(**fields: Any) -> "ModelConfig":
        """Return the configuration with these fields, which may come from a user. Raises `ModelError`."""
        try:
            return _ADAPTER.validate_python(fields)
        except ValidationError as error:
            raise ModelError(f"model: {one_line(error)[:1000]}") from None

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        if len(text) > LONGEST_JSON:
            raise ModelError(f"model of {len(text)} characters; at most {LONGEST_JSON} are accepted")
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ModelError(f"model {text[:200]!r}: {one_line(error)[:1000]}") from None


LATER = {
    "stages": (),
    "options": (),
    "outputs": (),
    "frozen": (),
    "mixer": "depthwise",
    "attention": "written",
    "block": 0,
}


def refuse_stages(name: str, stages: Named) -> None:
    """Raise `ValueError` if a model that is not a user's own names blocks."""
    if stages and name != "custom":
        raise ValueError(f'stages: only model "custom" takes them; "{name}" has stages of its own')


_ADAPTER = TypeAdapter(ModelConfig)
