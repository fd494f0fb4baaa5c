"""Augmentation: how a device changes the examples of each training step, by name.

A batch is changed by a few tensor operations, each example by draws of its own; mixup and CutMix have one share a
batch, as in their papers. All draws come from one generator on the CPU, which draws nothing else, so the order of the
examples is the same with and without augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from diastole.models.crossing import send
from diastole.models.errors import ModelError, brief
from diastole.models.losses import Criterion
from diastole.proto.errors import DiastoleError
from diastole.proto.registry import Registry


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that is being changed.

    Attributes:
        x: `[n, *input_shape]`, float32.
        targets: shares that sum to 1, each with targets `[n, ...]`: the loss is the sum of the losses for all of these
            targets, each multiplied by its share.

    """

    x: Tensor
    targets: tuple[tuple[float, Tensor], ...]

    def moved(self, axes: int, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with examples moved, and with them targets that have the same last `axes` axes."""
        places = self.x.shape[-axes:]
        along = tuple(
            (share, move(y) if y.ndim > axes and y.shape[-axes:] == places else y) for share, y in self.targets
        )
        return Batch(move(self.x), along)

    def mixed(self, x: Tensor, share: float, order: Tensor) -> "Batch":
        """Return a batch of inputs `x`, of which `share` is of this batch and the rest of it in another order."""
        if share == 1:
            return Batch(x, self.targets)
        mine = tuple((share * each, y) for each, y in self.targets)
        return Batch(x, (*mine, *(((1 - share) * each, y[order]) for each, y in self.targets)))


Change = Callable[[Batch, float, torch.Generator], Batch]
"""Returns a changed batch, given the strength and the generator of every draw."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One way of changing examples, as the registry knows it.

    Attributes:
        change: changes a batch; shapes and dtypes of examples and targets stay.
        strength: by default.
        least: strength that is accepted.
        most: likewise.
        axes: that examples must have behind their channels: 2 of an image, 1 of a window; 0 for any examples.
        moves: whether it moves what is at a place, so that targets with places have to move with it.
        mixes: whether it may give an example a share of another's target; batches are then changed one by one.

    """

    change: Change
    strength: float
    least: float
    most: float
    axes: int = 0
    moves: bool = False
    mixes: bool = True


def _flip(batch: Batch, share: float, draws: torch.Generator) -> Batch:
    chosen = send(torch.rand(len(batch.x), generator=draws) < share, batch.x.device)
    return batch.moved(2, lambda part: torch.where(_behind(chosen, part), part.flip(-1), part))


def _crop(batch: Batch, share: float, draws: torch.Generator) -> Batch:
    rows, columns = (_reflected(len(batch.x), size, share, draws) for size in batch.x.shape[-2:])
    places = send((rows[:, :, None] * batch.x.shape[-1] + columns[:, None]).flatten(1), batch.x.device)
    return batch.moved(2, lambda part: _taken(part.flatten(-2), places).view(part.shape))


def _cutout(batch: Batch, share: float, draws: torch.Generator) -> Batch:
    side = max(1, round(share * min(batch.x.shape[-2:])))
    rows, columns = (_spans(len(batch.x), size, side, draws) for size in batch.x.shape[-2:])
    hidden = send(rows[:, None, :, None] & columns[:, None, None], batch.x.device)
    return Batch(batch.x.masked_fill(hidden, 0.0), batch.targets)


def _mixup(batch: Batch, alpha: float, draws: torch.Generator) -> Batch:
    share, order = _beta(alpha, draws), send(torch.randperm(len(batch.x), generator=draws), batch.x.device)
    return batch.mixed(torch.lerp(batch.x[order], batch.x, share), share, order)


def _cutmix(batch: Batch, alpha: float, draws: torch.Generator) -> Batch:
    side = (1 - _beta(alpha, draws)) ** 0.5
    spans = (_spans(1, size, round(side * size), draws)[0] for size in batch.x.shape[-2:])
    rows, columns = (span.nonzero().flatten().tolist() for span in spans)
    order = send(torch.randperm(len(batch.x), generator=draws), batch.x.device)
    if not rows or not columns:
        return batch
    box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))

    def paste(part: Tensor) -> Tensor:
        pasted = part.clone()
        pasted[box] = part[order][box]
        return pasted

    moved = batch.moved(2, paste)
    if moved.targets[0][1] is not batch.targets[0][1]:
        return moved
    height, width = batch.x.shape[-2:]
    return batch.mixed(moved.x, 1 - len(rows) * len(columns) / (height * width), order)


def _jitter(batch: Batch, sigma: float, draws: torch.Generator) -> Batch:
    spread = batch.x.std(-1, correction=0, keepdim=True)
    noise = send(torch.randn(batch.x.shape, generator=draws), batch.x.device)
    return Batch(batch.x + sigma * spread * noise, batch.targets)


def _scaling(batch: Batch, sigma: float, draws: torch.Generator) -> Batch:
    factors = 1 + sigma * torch.randn(*batch.x.shape[:-1], 1, generator=draws)
    return Batch(batch.x * send(factors, batch.x.device), batch.targets)


def _shift(batch: Batch, share: float, draws: torch.Generator) -> Batch:
    count, length = len(batch.x), batch.x.shape[-1]
    most = round(share * length)
    steps = torch.randint(-most, most + 1, (count, 1), generator=draws)
    places = send((torch.arange(length) - steps) % length, batch.x.device)
    return batch.moved(1, lambda part: _taken(part, places))


_HERE = "diastole.models.augment"
AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    {
        name: f"{_HERE}:{name.upper()}"
        for name in ("flip", "crop", "cutout", "mixup", "cutmix", "jitter", "scaling", "shift")
    },
    Augmentation,
    ModelError,
)
"""Augmentations by name; a package of one's own adds to them by an entry point."""

FLIP = Augmentation(_flip, 0.5, 0, 1, axes=2, moves=True, mixes=False)
"""Left becomes right; the strength is the share of the examples."""
CROP = Augmentation(_crop, 1 / 8, 0, 1 / 2, axes=2, moves=True, mixes=False)
"""A crop of the image's own size, of the image with its reflection around it (as He et al., CVPR 2016, with zeros).

The strength is the share of the side that is added on each side.
"""
CUTOUT = Augmentation(_cutout, 1 / 2, 0, 1, axes=2, mixes=False)
"""A square of zeros, whose centre is anywhere in the image (DeVries & Taylor 2017); the strength is its side."""
MIXUP = Augmentation(_mixup, 0.2, 0.01, 100)
"""Each example is mixed with another; the first's share is drawn from Beta(strength, strength).

Zhang et al., ICLR 2018.
"""
CUTMIX = Augmentation(_cutmix, 1.0, 0.01, 100, axes=2, moves=True)
"""A box of another example is put in, whose share of the image is drawn likewise (Yun et al., ICCV 2019)."""
JITTER = Augmentation(_jitter, 0.05, 0, 10, axes=1, mixes=False)
"""Normal noise; the strength is its deviation, as a share of the channel's in the window (Um et al., ICMI 2017)."""
SCALING = Augmentation(_scaling, 0.1, 0, 10, axes=1, mixes=False)
"""Each channel is multiplied by a draw from N(1, strength) (Um et al., ICMI 2017)."""
SHIFT = Augmentation(_shift, 1 / 8, 0, 1 / 2, axes=1, moves=True, mixes=False)
"""The window is rolled, either way by up to this share of its length."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixed(Criterion):
    """The loss of a batch whose examples are mixed: the sum of those for several targets, multiplied by their shares.

    Attributes:
        others: shares and targets `[n, ...]` beside those that the batch has; the batch's own have the rest.
        asked: has something in it as soon as the loss was asked for.

    """

    others: tuple[tuple[float, Tensor], ...] = ()
    asked: list[bool] = field(default_factory=list)

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the losses of a batch's examples, `[n]`."""
        return self._sum(Criterion.each, outputs, y)

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        return self._sum(Criterion.mean, outputs, y)

    def _sum(self, loss: Callable[[Criterion, Tensor, Tensor], Tensor], outputs: Tensor, y: Tensor) -> Tensor:
        self.asked.append(True)
        if any(len(other) != len(y) for _, other in self.others):
            raise ModelError(f"the loss of {len(y)} examples of a mixed batch was asked for; expected the whole batch")
        found = (1 - sum(share for share, _ in self.others)) * loss(self, outputs, y)
        for share, other in self.others:
            found = found + share * loss(self, outputs, other)
        return found


def changed(
    augment: Sequence[str], x: Tensor, y: Tensor, criterion: Criterion, draws: torch.Generator
) -> tuple[Tensor, Tensor, Criterion]:
    """Return a batch's examples after all changes, in their order, and the loss by which they are to be judged.

    Args:
        augment: "name" or "name:strength".
        x: `[n, *input_shape]`.
        y: targets `[n, ...]`.
        criterion: the loss of the run.
        draws: the generator of every draw, on the CPU.

    Raises `ModelError` if an augmentation of another package fails.

    """
    batch = Batch(x, ((1.0, y),))
    for text in augment:
        row, strength = parse(text)
        try:
            batch = row.change(batch, strength, draws)
        except DiastoleError:
            raise
        except Exception as error:
            raise ModelError(f"augment {text!r}: examples {list(x.shape)}: {brief(error)}") from error
        if batch.x.shape != x.shape or any(each.shape != y.shape for _, each in batch.targets):
            raise ModelError(f"augment {text!r} gives examples {list(batch.x.shape)}; expected {list(x.shape)}")
    (_, y), *others = batch.targets
    return batch.x, y, Mixed(criterion.config, tuple(others)) if others else criterion


def parse(text: str) -> tuple[Augmentation, float]:
    """Return an augmentation and its strength, of "name" or "name:strength". Raises `ValueError`."""
    name, colon, number = text.partition(":")
    try:
        row = AUGMENTATIONS[AUGMENTATIONS.known(name)]
        strength = float(number) if colon else row.strength
    except ValueError as error:
        raise ValueError(f"augment {text!r}: {error}") from None
    if not row.least <= strength <= row.most:
        raise ValueError(f"augment {text!r}: the strength must be from {row.least:g} to {row.most:g}")
    return row, strength


EXPECTED = {1: "windows [channels, length]", 2: "images [channels, height, width]"}


def check_augment(
    what: str, augment: Sequence[str], criterion: Criterion, shape: Sequence[int], y: Tensor, tokens: bool = False
) -> None:
    """Raise `ModelError` for an augmentation that such examples, or their targets, cannot have.

    Args:
        what: whose examples they are, such as "train", for the error.
        augment: "name" or "name:strength".
        criterion: the loss.
        shape: of one example.
        y: targets `[n, ...]`.
        tokens: whether examples are numbers of tokens.

    """
    for text in augment:
        row, _ = parse(text)
        if tokens:
            raise ModelError(f'{what}: augment "{text}": examples are tokens, which no augmentation can change')
        if row.axes and len(shape) != row.axes + 1:
            raise ModelError(f'{what}: augment "{text}" takes {EXPECTED[row.axes]}; examples are {list(shape)}')
        if not row.moves or y.ndim <= row.axes:
            continue
        here = tuple(y.shape[-row.axes :]) == tuple(shape[-row.axes :])
        # Values of a whole window, or labels, may be as many as it has places; maps of images cannot be mistaken.
        flat = y.ndim == 2 and criterion.kind(y) != "classes"
        if here == flat:
            why = "could have the same places or not" if flat else "do not have the same places"
            raise ModelError(
                f'{what}: augment "{text}" moves what is at a place of examples {list(shape)}; '
                f"targets {list(y.shape)} {why}"
            )


def _behind(chosen: Tensor, part: Tensor) -> Tensor:
    """Return what is said of each example with as many axes as `part` has."""
    return chosen.view(-1, *[1] * (part.ndim - 1))


def _taken(part: Tensor, places: Tensor) -> Tensor:
    """Return what is at `places`, int64 `[n, length]`, of the last axis of `[n, ..., length]`."""
    return part.gather(-1, places.view(len(part), *[1] * (part.ndim - 2), -1).expand(part.shape))


def _reflected(count: int, size: int, share: float, draws: torch.Generator) -> Tensor:
    """Return where each place of a moved axis comes from, `[count, size]`; behind the edges it is reflected."""
    most = min(size - 1, round(share * size))
    steps = torch.randint(-most, most + 1, (count, 1), generator=draws)
    last = size - 1
    return last - (last - (torch.arange(size) + steps).abs()).abs()


def _spans(count: int, size: int, side: int, draws: torch.Generator) -> Tensor:
    """Return which places of an axis are within `side` around a centre that is drawn, bool `[count, size]`."""
    first = torch.randint(size, (count, 1), generator=draws) - side // 2
    places = torch.arange(size)
    return (places >= first) & (places < first + side)


def _beta(alpha: float, draws: torch.Generator) -> float:
    """Return a draw from Beta(alpha, alpha); torch's own samplers take no generator."""
    seed = int(torch.randint(1 << 62, (), generator=draws))
    return Random(seed).betavariate(alpha, alpha)  # noqa: S311 (nothing is kept secret by it)
