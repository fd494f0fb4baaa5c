"""How large a network is built: the numbers that methods choose."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a network of one family.

    Attributes:
        widths: channels of each stage. Fewer stages than the global model's are its first ones. With `sets`, of each
            set of channels.
        blocks: which residual blocks each stage has, by their position in the global model's stage; one that is
            missing is skipped. Empty for a family without blocks. With `sets`, fewer stages are the first ones.
        kernels: size of each elastic kernel, block by block; empty for the largest.
        expands: expansion ratio of each elastic block, block by block; empty for the largest.
        sets: whether it is that of a custom model, whose sets of channels may go through several stages.

    """

    widths: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    kernels: tuple[int, ...] = ()
    expands: tuple[float, ...] = ()
    sets: bool = False

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.blocks if self.sets else self.widths)

    def first(self, stages: int) -> "Shape":
        """Return the shape of the first stages alone. Raises `SpecError` if it has none that are known."""
        if self.sets and not self.blocks:
            raise SpecError("a model without stages or blocks has none to leave out; it can only be narrowed")
        inside = sum(len(kept) for kept in self.blocks[:stages])
        widths = self.widths if self.sets else self.widths[:stages]
        return Shape(widths, self.blocks[:stages], self.kernels[:inside], self.expands[:inside], self.sets)


def widths(model: ModelConfig) -> tuple[int, ...]:
    """Return the channels of each stage, or of each set of channels of a custom model. Raises `ModelError`."""
    if model.name != "custom":
        return tuple(model.widths)
    # Here, because it needs shapes itself.
    from diastole.models.networks.custom import own as custom

    return custom.widths(model)


def first_blocks(counts: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the first blocks of each stage, so many of each."""
    return tuple(tuple(range(count)) for count in counts)


def whole(model: ModelConfig) -> Shape:
    """Return the shape of the global model."""
    counts = [len(stage) for stage in model.stages] or model.blocks
    return Shape(widths(model), first_blocks(counts), sets=model.name == "custom")


def depth(model: ModelConfig) -> int:
    """Return the number of stages of the global model. Raises `ModelError` if it is a custom one without any."""
    if model.name == "custom" and not model.stages:
        raise ModelError(
            f"model custom: {model.factory} has no depth to cut, because nobody has named its blocks; do so in "
            "model.stages, or use a method that only slices widths"
        )
    return len(model.stages or model.widths)


def scaled(width: int, ratio: float, group: int) -> int:
    """Return `ratio` of `width` channels, rounded to the nearest multiple of `group` and at least one group."""
    return max(1, round(width * ratio / group)) * group


def narrowed(model: ModelConfig, ratio: float) -> Shape:
    """Return the global model's shape at `ratio` of its channels.

    Raises `SpecError` if that leaves less than one normalisation group of the narrowest stage.
    """
    full = whole(model)
    narrowest = min(full.widths)
    if narrowest * ratio < model.group / 2:
        raise SpecError(
            f"width {ratio:g} leaves less than one group of {model.group} channels of the narrowest layer "
            f"({narrowest}); it must be at least {model.group / 2 / narrowest:g}"
        )
    return replace(full, widths=tuple(scaled(width, ratio, model.group) for width in full.widths))
