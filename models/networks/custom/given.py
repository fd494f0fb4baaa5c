"""Outputs of the named blocks of a custom model: on which axis their channels are, and which channels these are."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from diastole.models.channels import Axis, Joined, spans
from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.split import Split
from diastole.models.networks.custom.traced import Traced, trace

PROBE = " given"


@dataclass(frozen=True, slots=True)
class Given:
    """The output of a block for one example.

    Attributes:
        shape: its shape in the whole model, without the axis of the examples.
        at: the axis of the channels, counting that of the examples: 1, or -1 for the last of several.
        runs: the channels that this axis runs over.

    """

    shape: tuple[int, ...]
    at: int
    runs: Axis | Joined | None

    @property
    def place(self) -> int:
        """The axis of the channels, not counting that of the examples."""
        return self.at if self.at < 0 else self.at - 1

    def shape_at(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in a model with `widths` channels of each set."""
        channels = sum(
            size if part is None else widths[part.channels] * part.repeat
            for part, size in spans(self.runs, self.shape[self.place])
        )
        found = list(self.shape)
        found[self.place] = channels
        return tuple(found)


def given(module: Split, half: Split, model: ModelConfig, apart: bool) -> tuple[Given, ...]:
    """Return each stage's output.

    Args:
        module: the whole module, in eval mode; it cannot be used afterwards.
        half: the same module at half its channels.
        model: its configuration, which names the blocks.
        apart: as `trace` takes it.

    Raises `ModelError` naming a block that cannot be left out, or whose output is not one tensor.

    """
    whole, narrow = _flow(model, module), _flow(model, half)
    at = {name: _axis(model, whole[name], narrow[name]) for name in whole}
    _put_probes(module, {name: _probe(y, at[name]) for name, y in whole.items()})
    traced = trace(module, model.blank(2), model.group, apart)
    found = {
        name: Given(tuple(y.shape[1:]), at[name], traced.layout[f"stages.{name}{PROBE}.weight"][0])
        for name, y in whole.items()
    }
    for stage, blocks in enumerate(model.stages):
        for number, path in enumerate(blocks[1:]):
            _check_skippable(path, found[f"{stage}.{number}"], found[f"{stage}.{number + 1}"], traced)
    return tuple(found[f"{k}.{len(s) - 1}"] for k, s in enumerate(model.stages))


def _flow(model: ModelConfig, module: Split) -> dict[str, Tensor]:
    """Return each block's output, by its name in `stages`. Raises `ModelError` for what cannot be a block."""
    found = dict[str, Tensor]()
    x = module.enter(model.blank(2))
    for number, paths in enumerate(model.stages):
        for block, path in enumerate(paths):
            version = x._version
            y = module.stages[number].get_submodule(str(block))(x)
            if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != 2:
                what = f"{list(y.shape)} for 2 examples" if isinstance(y, Tensor) else f"a {type(y).__name__}"
                raise ModelError(f"stages: block {path!r} gives {what}; expected one tensor [examples, ...]")
            if x._version != version:
                raise ModelError(
                    f"stages: block {path!r}, or what runs before it, overwrites what it takes, which others may read "
                    "too; use operators and layers that are not in place, such as nn.ReLU(inplace=False)"
                )
            found[f"{number}.{block}"] = x = y
    return found


def _put_probes(module: Split, probes: Mapping[str, nn.Module]) -> None:
    """Put, in place, a layer after each block."""
    for number, stage in enumerate(module.stages):
        layers = OrderedDict[str, nn.Module]()
        for name, block in stage.named_children():
            layers |= {name: block, f"{name}{PROBE}": probes[f"{number}.{name}"]}
        module.stages[number] = nn.Sequential(layers)


def _axis(model: ModelConfig, whole: Tensor, half: Tensor) -> int:
    """Return the axis of the channels: the one that is shorter at half the channels."""
    differ = [axis for axis in range(1, whole.ndim) if whole.shape[axis] != half.shape[axis]]
    # If all channels are kept whole, no axis differs: maps have channels first, tokens of images or words last.
    last = differ[0] == whole.ndim - 1 if differ else whole.ndim == 3 and len(model.input_shape) != 2
    return -1 if last and whole.ndim > 2 else (differ or [1])[0]


def _probe(y: Tensor, at: int) -> nn.Module:
    """Return a layer that treats every channel by itself, for the trace to find."""
    return nn.LayerNorm(y.shape[-1]) if at < 0 else nn.PReLU(y.shape[1])


def _check_skippable(path: str, before: Given, after: Given, traced: Traced) -> None:
    """Raise `ModelError` unless a block's input and output have one shape, at every width."""
    if before.shape == after.shape and before.at == after.at and _sizes(before, traced) == _sizes(after, traced):
        return
    takes, gives = list(before.shape), list(after.shape)
    why = f"takes {takes} and gives {gives}" if takes != gives else "gives channels that are narrowed otherwise"
    raise ModelError(
        f"stages: block {path!r} {why}; only the first block of a stage may, because the others can be left out: begin "
        "a stage with it"
    )


def _sizes(given: Given, traced: Traced) -> Counter[tuple[int, int]]:
    """Return the sizes of the sets that an axis runs over, which decide how many channels are left at any width."""
    found = Counter[tuple[int, int]]()
    for part, size in spans(given.runs, given.shape[given.place]):
        found[(0, 1) if part is None else (traced.sets[part.channels], part.repeat)] += size if part is None else 1
    return found
