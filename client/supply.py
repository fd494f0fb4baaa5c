"""The examples that a device has for the next task."""

import torch

from diastole.client.data import check_tokens
from diastole.client.errors import DataError
from diastole.client.sources.source import DataSource
from diastole.models.batches import slices
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples
from diastole.proto.profile import MOST_CLASSES

MUCH_MORE = 2
"""A device that has so many times the examples that the coordinator knows of joins anew."""


class Supply:
    """A source's newest examples, checked against the model that is trained.

    Attributes:
        seen: how many the source had when it was asked last.

    """

    def __init__(self, source: DataSource) -> None:
        self._source, self._examples, self.seen = source, Examples.empty(), len(source)
        self._fitting: list[ModelConfig] = []

    def look(self) -> None:
        """Look at the examples for the first time."""
        self._examples = self._source.examples()

    def check(self, model: ModelConfig) -> None:
        """Raise `DataError` if the examples that were seen last do not fit a model. May be called from any thread."""
        _check_shape(self._source.input_shape, model)
        _check_examples(self._examples, model)

    def newest(self, model: ModelConfig, known: int) -> Examples:
        """Return the newest examples; no more than the coordinator knows of, which refuses updates of more.

        Raises `DataError` if they do not fit the model.
        """
        found = self._source.examples()
        self.seen = len(found)
        if self.seen > known:
            found = found.part(self.seen - known, self.seen)
        if found is not self._examples:
            self._fitting.clear()
        if model not in self._fitting:
            _check_examples(found, model)
            self._examples = found
            self._fitting.append(model)
        return found

    def class_counts(self) -> tuple[int, ...]:
        """Return how many of the source's examples there are of each class. Raises `DataError` if they have none."""
        return class_counts(self._source.examples())

    def grown(self, known: int) -> bool:
        """Return whether there are many more examples than the coordinator knows of."""
        return self.seen >= MUCH_MORE * known


def class_counts(examples: Examples) -> tuple[int, ...]:
    """Return how many examples there are of each class, up to the largest label.

    Raises `DataError` for targets that are no labels, and for more classes than are told.
    """
    y = examples.y
    if y.ndim != 1 or y.is_floating_point():
        raise DataError("class counts of targets that are no labels; a label for each example is accepted")
    largest = int(y.max()) if len(y) else 0
    if largest >= MOST_CLASSES:
        raise DataError(f"class counts with the label {largest}; labels from 0 to {MOST_CLASSES - 1} are accepted")
    return tuple(torch.bincount(y).tolist())


def _check_shape(shape: tuple[int, ...], model: ModelConfig) -> None:
    if shape != model.input_shape:
        hint = ""
        if (*shape[-1:], *shape[:-1]) == model.input_shape:
            hint = "; the channels seem to be last: numpy.moveaxis(x, -1, 1) puts them first"
        elif (1, *shape) == model.input_shape:
            hint = "; the one channel seems to be left out: x[:, None] puts it there"
        raise DataError(f"examples have the shape {list(shape)}; the model takes {list(model.input_shape)}{hint}")


def _check_examples(examples: Examples, model: ModelConfig) -> None:
    _check_shape(tuple(examples.x.shape[1:]), model)
    if not len(examples):
        raise DataError("there are no examples to train on; at least 1 is accepted")
    labels = examples.y.ndim == 1 and not examples.y.is_floating_point() and model.classes > 1
    if labels and int(examples.y.max()) >= model.classes:
        raise DataError(f"examples have the label {int(examples.y.max())}; the model has {model.classes} classes")
    if model.vocabulary:
        for some in slices(examples):
            check_tokens("examples", some.x, model)
