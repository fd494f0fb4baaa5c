"""Running a module so that every operator says which channels its result has."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from diastole.models.kernels import plain_kernels
from diastole.models.networks.custom.follow.marks import Book, Marks, Shaped, varies
from diastole.models.watching import Watching

MADE = frozenset(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"))
"""Operators whose results have one value everywhere, so that a smaller one is a part of a larger one."""


class Followed(Tensor):
    """A tensor with marks; operators on it run on `plain`.

    Weights, and what is made of them alone, do not come from `examples`.
    """

    plain: Tensor
    marks: Marks
    examples: bool

    @staticmethod
    def __new__(cls, plain: Tensor, marks: Marks, examples: bool = False) -> "Followed":
        """Return a tensor of the same shape and values as `plain`."""
        made: Followed = Tensor._make_wrapper_subclass(
            cls, plain.shape, strides=plain.stride(), storage_offset=plain.storage_offset(), dtype=plain.dtype
        )
        made.plain, made.marks, made.examples = plain, marks, examples
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Followed({list(self.shape)}, {[list(mark.shape) for mark in self.marks]})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator outside of `following`, whose results are plain."""
        return func(*tree_map(_plain, args), **tree_map(_plain, dict(kwargs or {})))


class Call:
    """An operator that has run.

    Attributes:
        book: takes what is found.
        name: of the operator, without "aten::" and without the "_" of one that is in place.
        given: its arguments by name.
        result: what it gave.

    """

    def __init__(self, book: Book, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        schema = func._schema
        self.book, self._func, self._args, self._kwargs = book, func, args, kwargs
        self.name: str = schema.name.partition("::")[2].rstrip("_")
        self.given = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
        self.given |= dict(zip((each.name for each in schema.arguments), args, strict=False)) | dict(kwargs)
        self.result: Any = self.again(_plain)

    @property
    def tensors(self) -> list[Tensor]:
        """The arguments that are tensors, in order."""
        return [leaf for leaf in tree_leaves((self._args, self._kwargs)) if isinstance(leaf, Tensor)]

    @property
    def results(self) -> list[Any]:
        """What the operator gave, in order."""
        return list(self.result) if isinstance(self.result, (tuple, list)) else [self.result]

    def again(self, change: Callable[[Any], Any]) -> Any:
        """Run the operator with what becomes of each of its arguments."""
        return self._func(*tree_map(change, self._args), **tree_map(change, dict(self._kwargs)))

    def shaped(self, name: str) -> Shaped:
        """Return the marks of an argument, and its shape."""
        return shaped(self.given[name])

    def there(self, *names: str) -> list[str]:
        """Return those names of arguments that are tensors."""
        return [name for name in names if isinstance(self.given.get(name), Tensor)]

    def marks(self, name: str) -> Marks:
        """Return the marks of an argument; none of what is constant or None."""
        return marks_of(self.given.get(name))


Rule = Callable[[Call], list[Marks]]
"""Returns the marks of each of an operator's results; of those that it leaves out, nothing is known to vary."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Let a function be the rule of operators."""

    def note(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return note


def unknown(call: Call) -> list[Marks]:
    """Keep all channels that enter an operator without a rule."""
    if entered := [mark for leaf in call.tensors for mark in marks_of(leaf)]:
        call.book.unknown[call.name] = None
        call.book.whole(entered)
    return []


def pointwise(call: Call) -> list[Marks]:
    """Return the marks of an operator that takes its operands entry by entry."""
    return [call.book.unite(*(shaped(leaf) for leaf in call.tensors))]


def shaped(tensor: Tensor) -> Shaped:
    """Return the marks of a tensor, and its shape."""
    return marks_of(tensor), tensor.shape


def marks_of(value: Any) -> Marks:
    """Return the marks of a tensor; none of anything else."""
    return value.marks if isinstance(value, Followed) else []


class _Mode(Watching):  # type: ignore[no-untyped-call]
    """Runs operators, and gives their results marks."""

    def __init__(self, book: Book) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._book = book

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(self._book, func, args, kwargs or {})
        if call.name in MADE:
            return Followed(call.result, self._book.fresh(call.result.shape))
        if not any(isinstance(leaf, Followed) for leaf in call.tensors):
            return call.result
        if not any(isinstance(leaf, Tensor) for leaf in call.results):
            return call.result
        examples = any(isinstance(leaf, Followed) and leaf.examples for leaf in call.tensors)
        known = RULES.get(call.name, pointwise if torch.Tag.pointwise in func.tags else unknown)
        found = [self._book.known(marks) for marks in known(call)]
        found += [[] for _ in call.results[len(found) :]]
        if func._schema.name.endswith("_"):
            (target, *_), (marks, *_) = args, found
            if isinstance(target, Followed):
                target.marks, target.examples = marks, examples
            else:
                self._book.whole(marks)
            return target
        made = [
            Followed(leaf, marks, examples) if isinstance(leaf, Tensor) else leaf
            for leaf, marks in zip(call.results, found, strict=True)
        ]
        return type(call.result)(made) if isinstance(call.result, (tuple, list)) else made[0]


@contextmanager
def following(module: nn.Module, book: Book) -> Iterator[None]:
    """Follow what runs in the block, in which the inputs of a module's parts are known."""

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Followed)]
        book.inputs.append([channels for leaf in given for channels in _channels(leaf)])

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in module.modules()]
    hooks += [layer.register_forward_hook(lambda *_: _left(book)) for layer in module.modules()]
    try:
        with plain_kernels(), _Mode(book):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _channels(given: Followed) -> list[Tensor]:
    """Return the channels of what a module is given, by the axes that may be theirs."""
    if not given.marks:
        axes = {2: (1,), 3: (2,), 4: (1, 3)}.get(given.ndim, ())
        return [torch.zeros(given.shape[axis], dtype=torch.int64) for axis in axes]
    return [mark.flatten() for mark in given.marks if len(varies(mark)) == mark.shape[-1] == 1]


def _left(book: Book) -> None:
    book.inputs.pop()


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, Followed) else value
