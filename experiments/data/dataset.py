"""A data set that has checked itself, and the server's own labelled part of it."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from diastole.client.errors import DataError
from diastole.models.batches import slices
from diastole.models.losses import IGNORED
from diastole.models.seeds import generator
from diastole.models.training import Examples

PART = 1024
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Dataset:
    """Examples to train on and to test on.

    Raises `DataError` for tensors that do not make a data set. Labels of any type of whole numbers become int64, other
    targets float32.

    Attributes:
        name: for people.
        train: the examples that devices and the proxy set are made of; x `[n_train, *input_shape]`.
        test: examples that nothing is trained or selected on.
        classes: labels run from 0 to `classes - 1`; of values it says nothing.
        users: int64 `[n_train]`, the natural client of each training example, or None if there are none.

    """

    name: str
    train: Examples
    test: Examples
    classes: int
    users: Tensor | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            what = f"data set {self.name!r}: {part}"
            object.__setattr__(self, part, _checked(what, getattr(self, part), self.classes))
        here, there = list(self.train.x.shape[1:]), list(self.test.x.shape[1:])
        if here != there:
            raise DataError(f"data set {self.name!r}: an example of test is {there}; {here}, as in train, is accepted")
        if self.train.y.shape[1:] != self.test.y.shape[1:] or self.train.y.dtype != self.test.y.dtype:
            train, test = (f"{_kind(part.y)} {list(part.y.shape)}" for part in (self.train, self.test))
            raise DataError(f"data set {self.name!r}: targets of test are {test}; {train}, as in train, is accepted")
        if self.users is not None and (self.users.dtype not in WHOLE or self.users.shape != (len(self.train),)):
            what = f"{_kind(self.users)} {list(self.users.shape)}"
            raise DataError(
                f"data set {self.name!r}: users is {what}; whole numbers [{len(self.train)}], one for each example of "
                "train, are accepted"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example, `[channels, height, width]` for images."""
        return tuple(self.train.x.shape[1:])

    @property
    def labels(self) -> Tensor | None:
        """The label of each training example, int64 `[n_train]`; None if examples have not one label each."""
        y = self.train.y
        return None if y.is_floating_point() or y.ndim > 1 else y

    @property
    def strata(self) -> Tensor:
        """What examples are dealt by where every kind is to have its share: labels, or the same for all."""
        return strata(self.train.y)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of every value and label: two data sets of one digest give the same runs."""
        total = hashlib.sha256()
        parts = (self.train.x, self.train.y, self.test.x, self.test.y, *(() if self.users is None else (self.users,)))
        for tensor in parts:
            total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            # A part at a time: the whole may be larger than memory.
            for some in torch.split(tensor, PART):
                total.update(some.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()


def strata(y: Tensor) -> Tensor:
    """Return the label of each example, or zero for all if they have not one label each; int64 `[n]`."""
    return y if y.ndim == 1 and not y.is_floating_point() else torch.zeros(len(y), dtype=torch.int64)


def _checked(what: str, examples: Examples, classes: int) -> Examples:
    x, y = examples.x, examples.y
    if not (y.dtype in WHOLE or y.is_floating_point()) or y.dim() < 1 or len(y) != len(x):
        raise DataError(
            f"{what}: targets are {_kind(y)} {list(y.shape)}; whole numbers or values [{len(x)}, ...], one or more for "
            "each input, are accepted"
        )
    if examples.part(0, 1).x.dtype not in (torch.float32, torch.int64) or x.dim() < 2 or not x.numel():
        raise DataError(
            f"{what}: inputs are {_kind(x)} {list(x.shape)}; float32 [n, ...], or int64 for tokens, with at least one "
            "example and at least one value each are accepted"
        )
    # Bytes are finite, and need not be read for it.
    if x.dtype != torch.uint8 and not all(bool(torch.isfinite(some.x).all()) for some in slices(examples, PART)):
        raise DataError(f"{what}: an input holds a value that is not finite; finite values are accepted")
    if not torch.isfinite(y).all():
        raise DataError(f"{what}: a target holds a value that is not finite; finite values are accepted")
    if y.is_floating_point():
        return replace(examples, y=y.float())
    wrong = y[((y < 0) & (y != IGNORED)) | (y >= classes)] if y.dim() > 1 else y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise DataError(f"{what}: a label is {int(wrong[0])}; whole numbers from 0 to {classes - 1} are accepted")
    return replace(examples, y=y.long())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def split_proxy(dataset: Dataset, size: int, seed: int, validation: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Take the server's own labelled set out of the training examples.

    Args:
        dataset: whose training examples are split.
        size: examples the server gets, at most half of all; as many of each class as of every other, as far
            as the classes reach.
        seed: of the run.
        validation: the share of `size`, between 0 and 1, that is for selection only; at least one example
            when `size` is 2 or more, and never all of them.

    Returns:
        Sorted int64 indices into `dataset.train`: for the server to train on, for it to select by, and what
        is left for devices. They are disjoint and cover every example.

    Raises:
        DataError: `size` or `validation` is out of range.

    """
    labels = dataset.strata
    if not 0 <= size <= len(labels) // 2:
        raise DataError(
            f"proxy size is {size}; 0 to {len(labels) // 2}, half of the training examples of "
            f"{dataset.name!r}, is accepted"
        )
    if not 0 < validation < 1:
        raise DataError(f"proxy validation share is {validation}; a number between 0 and 1 is accepted")
    draws = generator(seed, "proxy")
    proxy = draw_examples(labels, size, draws, proportional=False)
    held_out = min(max(round(size * validation), 1), size - 1) if size >= 2 else 0
    selection = proxy[draw_examples(labels[proxy], held_out, draws, proportional=True)]
    return without(proxy, selection), selection.sort().values, without(torch.arange(len(labels)), proxy)


def draw_examples(labels: Tensor, size: int, draws: torch.Generator, *, proportional: bool) -> Tensor:
    """Return `size` indices: equally many of each class, or as many as its share.

    Every example gets a place in the queue of its class, and whoever stands nearest the front is taken, ties
    at random. Measuring the place as a share of the queue is Sainte-Laguë apportionment.
    """
    order = torch.randperm(len(labels), generator=draws)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        queue = (labels[order] == label).nonzero().squeeze(1)
        place[queue] = torch.arange(len(queue), dtype=torch.float64) + 0.5
        if proportional:
            place[queue] /= len(queue)
    return order[place.argsort(stable=True)[:size]]


def without(index: Tensor, taken: Tensor) -> Tensor:
    """Return `index`, sorted, without those `taken`."""
    return index[~torch.isin(index, taken)].sort().values
