"""Whole numbers that a user's module keeps: which of them are sizes that change when the module is narrowed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from diastole.models.channels import Axis, Joined, Layout, spans

NEVER = frozenset(
    (
        *("kernel_size", "stride", "padding", "dilation", "output_padding", "scale_factor", "depth", "num_layers"),
        *("layers", "n_layers", "patch_size", "img_size", "image_size", "window_size", "grid_size", "max_len", "seed"),
        *("seq_len", "length", "vocab_size", "num_classes", "classes", "num_tokens"),
    )
)
"""Attributes that count other things, whatever their value."""

HEADS = ("head", "heads")
"""How attributes end that count heads, and nothing else does."""

Key = tuple[str, str, int]
"""A module by its path, an attribute, and a position in it; -1 for an attribute that is a number itself."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a number counts.

    Attributes:
        parts: the sets whose channels it counts, each with its number of entries; None for entries that are kept.
        per: channels of a row, if the number counts rows, such as the heads of an attention.

    """

    parts: tuple[tuple[Axis | None, int], ...]
    per: int = 1

    def at(self, widths: Mapping[str, int]) -> int:
        """Return the number in a module with `widths` channels of each set."""
        return (
            sum(size if part is None else widths[part.channels] * part.repeat for part, size in self.parts) // self.per
        )


def sizes(
    module: nn.Module, layout: Layout, sets: Mapping[str, int], rows: Mapping[str, int], own: tuple[type, ...]
) -> dict[Key, Size]:
    """Return the numbers of a module that may be sizes, because an axis in their module or a set on it is as long.

    Args:
        module: the whole one.
        layout: what the axes of its parameters run over.
        sets: number of channels of each set.
        rows: channels of a row of each set that is narrowed by rows.
        own: layers whose attributes are known, so that nobody needs to guess.

    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    found: dict[Key, Size] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, own) or type(layer).__module__.startswith("torch."):
            continue
        known: dict[int, Size] = {}
        heads: dict[int, Size] = {}
        for name, axes in layout.items():
            if name.startswith(f"{path}." if path else ""):
                for axis, length in zip(axes, shapes[name], strict=True):
                    for count, size in _counts(axis, length, sets, rows):
                        (heads if size.per > 1 else known).setdefault(count, size)
        for name, value in vars(layer).items():
            if name not in NEVER:
                mine = heads if name.endswith(HEADS) else known
                found |= {(path, name, k): mine[count] for k, count in _numbers(value) if count in mine}
    return found


def resized(module: nn.Module, numbers: Mapping[Key, Size], widths: Mapping[str, int]) -> None:
    """Set, in place, the numbers of a module to what they count in one with these widths."""
    for (path, name, k), size in numbers.items():
        layer = module.get_submodule(path)
        value = getattr(layer, name)
        if k >= 0:
            changed = [*value[:k], size.at(widths), *value[k + 1 :]]
            setattr(layer, name, changed if isinstance(value, list) else tuple(changed))
        else:
            setattr(layer, name, size.at(widths))


def _counts(
    axis: Axis | Joined | None, length: int, sets: Mapping[str, int], rows: Mapping[str, int]
) -> Iterator[tuple[int, Size]]:
    parts = spans(axis, length)
    if axis is not None:
        yield length, Size(parts)
    for part, size in parts:
        if part is not None:
            yield size, Size(((part, size),))
            if part.channels in rows:
                yield (
                    sets[part.channels] // rows[part.channels],
                    Size(((part, size),), rows[part.channels] * part.repeat),
                )


def _numbers(value: Any) -> Sequence[tuple[int, int]]:
    """Return the whole numbers in an attribute that may be sizes, each with its position."""
    several = isinstance(value, (tuple, list))
    return [
        (k if several else -1, each)
        for k, each in enumerate(value if several else [value])
        if type(each) is int and each > 1
    ]
