"""A stand-in card: a torch device "card" that computes on the CPU, and notes whatever a real card could not do unasked.

A tensor of it says that it is on the device "card:0" and holds one of the CPU. Every operator is looked at: tensors of
both may not meet (but for CPU scalars, as torch allows), and nothing may be read from the card, or sent to it, but
through `models/crossing.py`. `vmap`, `functional_call` and autograd work as on any device. `Watched` looks at a real
card in the same way.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from diastole.models.crossing import crossing

NAME = "card"
ATEN = torch.ops.aten
READS = {
    ATEN._local_scalar_dense.default: "reads a number",
    ATEN.equal.default: "reads whether tensors are equal",
    ATEN.nonzero.default: "reads how many are not zero",
    ATEN.masked_select.default: "reads how many are chosen",
    ATEN.bincount.default: "reads the largest class",
    ATEN._unique2.default: "reads how many differ",
    ATEN.repeat_interleave.Tensor: "reads how often to repeat",
}
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
FAULTS: list[str] = []


def fault(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str) -> str:
    """Return what an operator does that a card does only if it is asked to; empty if it is all right."""
    if crossing.inside:
        return ""
    there = _tensors((*args, *kwargs.values()))
    cpus = [tensor for tensor in there if tensor.device.type != kind]
    to = kwargs.get("device")
    target = torch.device(to).type if to is not None else ""
    if len(cpus) == len(there) and target != kind:
        return ""
    if func in COPIES and (cpus or target == "cpu"):
        return "crosses"
    if func in READS:
        return READS[func]
    if func is ATEN.index.Tensor and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
        return "reads how many a mask has"
    if any(t.ndim for t in cpus) or (cpus and func is ATEN.stack.default):
        return "mixes a card's tensors with the CPU's"
    if any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values())):
        return "draws on a card by a generator of the CPU"
    return ""


def _tensors(given: Iterable[Any]) -> list[Tensor]:
    """Return all tensors of an operator's arguments, which may be in lists."""
    found = list[Tensor]()
    for each in given:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += [some for some in each if isinstance(some, Tensor)]
    return found


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return an argument or a result with every tensor of it changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(part, change) for part in value])
    return change(value) if isinstance(value, Tensor) else value


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, CardTensor) else tensor


def _note(what: str, func: Any) -> None:
    frame, where = sys._getframe(1), list[str]()
    while frame is not None and len(where) < 3:
        file = frame.f_code.co_filename
        if "site-packages" not in file and file != __file__ and "diastole" in (frame.f_globals.get("__name__") or ""):
            where.append(f"{frame.f_globals['__name__']}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    FAULTS.append(f"{func} {what}, called by {' < '.join(where) or 'a test'}")


class CardTensor(Tensor):
    """A tensor that says that it is on the card."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "CardTensor":
        made: CardTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Card({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "CardTensor":
        """Return a copy; a parameter stays one."""
        if id(self) not in memo:
            copy = CardTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
            copy.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "inner"}
            memo[id(self)] = copy
        return memo[id(self)]

    def data_ptr(self) -> int:
        """Return where the values are, as of any tensor."""
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on what the card's tensors hold."""
    if what := fault(func, args, kwargs, NAME):
        _note(what, func)
    to = kwargs.get("device")
    down = to is not None and torch.device(to).type == "cpu"
    if to is not None:
        kwargs["device"] = torch.device("cpu")
    held = {id(each.inner): each for each in _tensors((*args, *kwargs.values())) if isinstance(each, CardTensor)}
    found = func(*_each(args, _inner), **{name: _each(value, _inner) for name, value in kwargs.items()})
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            func(*args, **kwargs)
    assert all(each.shape == each.inner.shape for each in held.values()), f"{func} has changed a shape in place"
    if down or (func is ATEN.copy_.default and not isinstance(args[0], CardTensor)):
        return found
    return _each(found, lambda tensor: held[id(tensor)] if id(tensor) in held else CardTensor(tensor))


def _empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return CardTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Tensor:
    return CardTensor(torch.empty_strided(size, stride, dtype=dtype))


def _arange(*ends: Any, dtype: Any = None, **_: Any) -> Tensor:
    return CardTensor(torch.arange(*ends, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, *_: Any) -> Tensor:
    _inner(target).copy_(_inner(source))
    if not crossing.inside and isinstance(source, CardTensor) != isinstance(target, CardTensor):
        _note("crosses", "aten::copy_")
    return target


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a kind of device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the types of mixed precision."""
        return [torch.bfloat16]


def install() -> None:
    """Let torch know the device "card", in this process, from now on."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())  # type: ignore[no-untyped-call]
    _LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
    _LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in ("arange", "arange.start", "arange.start_step"):
        _LIBRARY.impl(name, _arange, "PrivateUse1")


_LIBRARY = torch.library.Library("aten", "IMPL")


class Watched(TorchDispatchMode):
    """Looks at every operator of a real card, in this thread."""

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = kind

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if what := fault(func, args, kwargs or {}, self._kind):
            _note(what, func)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(kind: str = NAME) -> Iterator[None]:
    """Fail, behind the block, if anything crossed between a card and the CPU that was not asked to."""
    FAULTS.clear()
    if kind == NAME:
        yield
    else:
        with Watched(kind):
            yield
    found = {line: FAULTS.count(line) for line in dict.fromkeys(FAULTS)}
    FAULTS.clear()
    assert not found, "\n".join(f"{count} x {line}" for line, count in found.items())


def cards() -> list[str]:
    """Return the cards of this machine to run tests on: the stand-in, and real ones."""
    install()
    return [NAME, *(["cuda"] if torch.cuda.is_available() else [])]
