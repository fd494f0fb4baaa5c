"""The tables of an experiment that say what there is: the data, the global model, the devices by their strength."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from diastole.client.sources.layout import Layout
from diastole.experiments.section import Section
from diastole.models.networks.config import Attention, Mixer, Named, Patterns, refuse_stages
from diastole.models.networks.registry import NETWORKS

MOST_STAGES, MOST_CHANNELS, MOST_TIERS, MOST_DEVICES, MOST_PIXELS = 64, 65_536, 64, 10_000_000, 4096
LONGEST_NAME = 64
MOST_THREADS = 1024

MOST_SECONDS = 3600.0

Sizes = Annotated[tuple[Annotated[int, Field(ge=0, le=MOST_CHANNELS)], ...], Field(max_length=MOST_STAGES)]
"""Channels or blocks, stage by stage."""


class Data(Section):
    """`[data]`: where the examples come from.

    Attributes:
        name: "digits" (comes with scikit-learn), "npz", "npy", "idx", "cifar", "images", "sounds", "table", "hf", or
            one of an installed package (`experiments/data/sets.py`); or a function of the user's own.
        path: of the file or folder; not for "digits".
        test: the share of the examples that is drawn for the test, of a data set that comes without a test part.
        layout: "channels-first", "channels-last" or "grey", for arrays of images or series that could be either.
        size: height and width, in pixels, that images are scaled to; 0 leaves them as they are.
        seconds: length that sounds are cut, or filled with silence, to; 0 leaves them as they are.
        input: the column, or the array, that holds the inputs, of "hf" and "npz", where it cannot be told.
        label: the column, or the array, that holds the labels; several columns of a table are a list, or "a,b".
        user: the column, or the array, that holds the natural client of each example, if there is one.
        proxy: labelled training examples that the server keeps and no device gets.
        proxy_validation: the share of them that is for selection only.
        personal: the share of each simulated device's examples that it keeps for a test of its own, and does not train
            on: at the end of the run each device is scored on them before and after it trains; 0: none.
        proxy_labels: False takes the labels away from the proxy examples, whichever they are; what needs them is
            then refused. The examples are the same, dealt evenly over the classes.

    """

    name: str = "digits"
    path: Path | None = None
    test: float = Field(default=0.2, gt=0, lt=1)
    layout: Layout = ""
    size: int = Field(default=0, ge=0, le=MOST_PIXELS)
    seconds: float = Field(default=0.0, ge=0, le=MOST_SECONDS)
    input: str = Field(default="", max_length=200)
    label: str = Field(default="label", min_length=1, max_length=200)
    user: str = Field(default="user", min_length=1, max_length=200)
    proxy: int = Field(default=100, ge=0, lt=1 << 40)
    proxy_validation: float = Field(default=0.25, gt=0, lt=1)
    proxy_labels: bool = True
    personal: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("label", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


class Network(Section):
    """`[model]`: the global model; the input shape and the classes are those of the data.

    Attributes:
        factory: "package.module:function" that returns the module of a "custom" model. Whoever runs the experiment
            imports and calls it.
        stages: the blocks of each stage of a "custom" model, by their paths in it.
        options: further settings, by name, of a network that another package brings.
        outputs: the shape of what a "custom" model gives for one example, where the loss does not tell.
        frozen: patterns of the names of tensors that nobody trains, such as "stem.*"; for a "custom" model the names
            in your module, whose parameters that need no gradient are frozen too.
        initial: a safetensors file that the weights start from (`experiments/initial.py`); drawn if there is none.
        fresh: patterns of the names of tensors that are drawn all the same, such as "head.*" for other classes.
        statistics: of batch normalisation, for devices' own scores (`data.personal`): those of the proxy set, as for
            all other scores ("recalibrate"), or those of the device's own training examples ("device").

    """

    name: str = "cnn"
    widths: Sizes = (16, 32)
    blocks: Sizes = ()
    group: int = Field(default=4, ge=1, le=MOST_CHANNELS)
    patch: int = Field(default=4, ge=1, le=MOST_CHANNELS)
    vocabulary: int = Field(default=0, ge=0, le=1 << 24)
    kernel: Literal[3, 5, 7] = 7
    expand: float = Field(default=6.0, ge=1, le=1024)
    mixer: Mixer = "depthwise"
    attention: Attention = "written"
    block: int = Field(default=0, ge=0, le=64)
    factory: str = ""
    stages: Named = ()
    options: dict[str, bool | int | float | str] = Field(default_factory=dict, max_length=64)
    outputs: Sizes = ()
    frozen: Patterns = ()
    initial: Path | None = None
    fresh: Patterns = ()
    statistics: Literal["recalibrate", "device"] = "recalibrate"

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return NETWORKS.known(value)

    @model_validator(mode="after")
    def _own_stages(self) -> "Network":
        refuse_stages(self.name, self.stages)
        if self.fresh and self.initial is None:
            raise ValueError("fresh: everything is drawn; it is for a model with an initial file")
        return self


class Tier(Section):
    """`[tiers.NAME]`: devices of one strength.

    Attributes:
        devices: how many.
        width: share of the channels that a device of this tier can just train: its memory budget is what that
            sub-model needs.
        names: patterns of the names of devices that may be in this tier, such as "phone-*"; empty: any. The operator
            says here who may get what; a device only says what it would like.
        threads: the most that a device of this tier trains with, if its owner lets it; none: what its owner lets it.

    """

    devices: int = Field(ge=0, le=MOST_DEVICES)
    width: float = Field(gt=0, le=1)
    names: tuple[str, ...] = Field(default=(), max_length=1000)
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)


DEFAULT_TIERS = {
    "large": Tier(devices=2, width=1.0),
    "medium": Tier(devices=3, width=0.5),
    "small": Tier(devices=3, width=0.25),
}
