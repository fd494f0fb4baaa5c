"""How large a network is built: the numbers that methods choose."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

from diastole.models.errors import SpecError


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a network of one kind.

    Attributes:
        widths: channels of each stage, or with `sets` of each set of channels. Fewer stages than the global model has
            are its first ones.
        blocks: which residual blocks each stage has, by their position in the global model's stage; one that is
            missing is skipped. Empty for a network without blocks. With `sets`, fewer stages are the first ones.
        kernels: size of each elastic kernel, block by block; empty for the largest.
        expands: expansion ratio of each elastic block, block by block; empty for the largest.
        sets: whether sets of channels may go through several stages, as in a custom model.

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
        """Return the shape of the first stages alone. Raises `SpecError` if no stages are known."""
        if self.sets and not self.blocks:
            raise SpecError("a model without stages or blocks has none to leave out; it can only be narrowed")
        inside = sum(len(kept) for kept in self.blocks[:stages])
        widths = self.widths if self.sets else self.widths[:stages]
        return Shape(widths, self.blocks[:stages], self.kernels[:inside], self.expands[:inside], self.sets)


def first_blocks(counts: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the first blocks of each stage; `counts` says how many of each."""
    return tuple(tuple(range(count)) for count in counts)


def scaled(width: int, ratio: float, group: int, block: int = 0) -> int:
    """Return `ratio` of `width` channels, rounded to the nearest multiple of `group` and at least one group.

    With a `block`, the number is a multiple of that too, unless no block would be left, or all channels are kept.
    """
    unit = lcm(group, block or 1)
    blocks = round(width * ratio / unit)
    if block and ratio < 1 and 0 < blocks * unit <= width:
        return blocks * unit
    return max(1, round(width * ratio / group)) * group
