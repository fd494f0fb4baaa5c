"""What training a sub-model costs, measured from the module itself."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import torch
from safetensors import torch as tensors
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from diastole.models.dropout import draw_from
from diastole.models.errors import ModelError, brief
from diastole.models.flops import flops
from diastole.models.gradients import kept
from diastole.models.kernels import plain_kernels
from diastole.models.kinds import Work, largest, of_batch, operator_work, optimiser_work
from diastole.models.levers import Levers
from diastole.models.losses import Criterion
from diastole.models.seeds import reference_plan
from diastole.models.training import Examples, Objective, Step, TrainConfig, loss_of, outputs_of
from diastole.models.watching import Watching
from diastole.proto.errors import DiastoleError

HEAP_GAPS = 0.45
"""Of the activations that are saved, what the heap takes beside them, since it finds no place for all that is freed and
wanted again. With what the largest operator touches it was enough for all of 21 trainings (11 networks, batches of 64,
glibc), of which 20 took 12 to 99 % more than `Cost.memory`, and one less."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sub-model costs a device.

    Attributes:
        parameters: scalars.
        forward_macs: multiply-accumulates of the forward pass of one example.
        training_macs: multiply-accumulates of forward and backward pass of one example.
        memory: peak bytes of training at the given batch size: weights, gradients, optimiser state, the batch and the
            activations saved for the backward pass. Where nothing is differentiated, none are saved; the most that
            activations and results take at once counts instead.
        bytes_down: tensor bytes a device downloads a round; it may have kept those that it does not train.
        bytes_up: tensor bytes a device uploads a round; what it does not train it does not send back.
        tensors: parameter tensors.
        header: further bytes of a download: the tensors' names and shapes.
        spared: those of them that are of tensors that are not trained.
        work: of a step on a batch, by kind (`models/kinds.py`).
        shapes: of the tensors that are trained, by which codecs tell their bytes.
        saved: of the memory, what one example of a step adds by its activations.
        moved: bytes that a step touches beside its peak memory, because it has parts or computes things twice.
        calls: how many times as many calls of operators a step takes as plain training does.
        passing: bytes that a step takes for moments beside `memory`: gradients on their way from layer to layer, copies
            that libraries make for their kernels, gaps in the heap. They count where `Profile.memory_free` is said.
        whole: of a part, the bytes of a download of all that somebody trains, header and all; 0 for all of a sub-model.

    """

    parameters: int
    forward_macs: int
    training_macs: int
    memory: int
    bytes_down: int
    bytes_up: int
    tensors: int
    header: int = 0
    spared: int = 0
    work: Work = field(default_factory=dict, hash=False)
    shapes: tuple[tuple[int, ...], ...] = ()
    saved: int = 0
    moved: int = 0
    calls: float = 1.0
    whole: int = 0
    passing: int = 0

    @property
    def down(self) -> int:
        """The bytes of a download, header and all."""
        return self.bytes_down + self.header

    @property
    def up(self) -> int:
        """The bytes of an upload, header and all."""
        return self.bytes_up + self.header_up

    @property
    def moving(self) -> int:
        """The bytes of a download of what somebody trains, so that they are others each time, header and all."""
        return self.whole or self.up

    @property
    def untrained(self) -> int:
        """The bytes of a download that nobody trains, and a device may have kept, header and all."""
        return self.down - self.moving

    @property
    def header_up(self) -> int:
        """The bytes of an upload beside its tensors'."""
        return self.header - self.spared


def measure(
    module: nn.Module,
    input_shape: Sequence[int],
    training: TrainConfig,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    partial: bool = False,
) -> Cost:
    """Return the cost of training a module, measured in one step on one example and one on two.

    A module that cannot take a single example, such as one with batch normalisation, takes steps on two and on three.

    Multiply-accumulates are half of what `torch.utils.flop_counter` counts (convolutions and matrix products;
    normalisation and pointwise work is not counted). Saved activations are those that autograd keeps; every further
    example adds as many bytes. An `Objective` takes `draws` steps, in which `Step.pick` returns every choice in turn.
    The cost has the mean of their multiply-accumulates, which is exact for an objective that picks one of `draws`
    things, and the largest memory.

    Args:
        module: what is trained; parameters on the meta device are replaced by zeros.
        input_shape: of one example.
        training: how the module is trained.
        dtype: of the examples.
        recompute: whether activations inside of blocks are computed twice (`models/recompute.py`); the memory is then
            the most that is there at any moment of the backward pass.
        partial: whether only a part is trained. Few activations are then saved, and the memory is that of the forward
            pass alone where this takes more.

    Raises `ModelError` if the module cannot be trained in batches of this size.

    """
    # Some kernels for meta tensors are Python, and import torch's compiler, which takes longer than the steps do.
    hollow = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_meta}
    if hollow:
        zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in hollow.items()}
        module.load_state_dict(zeros, strict=False, assign=True)
    draws, criterion = module.draws if isinstance(module, Objective) else 1, training.criterion

    def blank(count: int) -> Tensor:
        return torch.zeros(count, *input_shape, dtype=dtype)

    with reference_plan():
        try:
            few, one = 1, _steps(module, blank(1), draws, criterion, recompute)
        except DiastoleError:
            raise
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
            few, one = 2, _steps(module, blank(2), draws, criterion, recompute)
            _check_pairs(module, blank(2), training, error)
        two = _steps(module, blank(few + 1), draws, criterion, recompute)
        # The two steps cannot tell: one example may have its peak at another place than a batch.
        peak = _peak(module, blank(training.batch_size), criterion) if partial or not one.saved else 0

    def batch(first: int, second: int) -> int:
        return first + (training.batch_size - few) * (second - first)

    named = dict(module.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    still = {name: parameter for name, parameter in named.items() if name not in trained}
    spared = _header(still) if still else 0
    optimiser = optimiser_work(training, optimised := sum(map(_bytes, trained.values())))
    examples = training.batch_size * dtype.itemsize * prod(input_shape)
    saved = batch(one.saved, two.saved)
    return Cost(
        parameters=sum(parameter.numel() for parameter in named.values()),
        forward_macs=batch(one.forward, two.forward) // (2 * training.batch_size),
        training_macs=batch(one.flops, two.flops) // (2 * training.batch_size),
        # Clipping copies the gradients.
        memory=standing(module, training) + examples + max(saved, peak, bool(training.clip) * optimised),
        bytes_down=sum(map(_bytes, named.values())),
        bytes_up=optimised,
        tensors=len(named),
        header=_header(trained) + spared,
        spared=spared,
        work=of_batch(one.work, two.work, few, training.batch_size, optimiser),
        shapes=tuple(tuple(p.shape) for p in trained.values()),
        saved=max(two.saved - one.saved, -(-peak // training.batch_size) if partial else 0),
        passing=largest(one.touched, two.touched, few, training.batch_size) + int(HEAP_GAPS * max(saved, peak)),
    )


def _check_pairs(module: nn.Module, pair: Tensor, training: TrainConfig, error: Exception) -> None:
    """Raise `ModelError` if a module that fails on one example, with `error`, cannot be trained or learn."""
    if training.batch_size == 1:
        raise ModelError(
            f"the model cannot be trained on one example ({brief(error)}); set training.batch_size to at least 2"
        )

    def check(name: str, layer: nn.GroupNorm, x: Tensor) -> None:
        if x[0].numel() == layer.num_groups:
            raise ModelError(
                f"layer {name!r} (GroupNorm) has one value in a group for each example, of which normalising leaves "
                "nothing; give it more channels a group, or a larger map"
            )

    hooks = [
        layer.register_forward_pre_hook(lambda layer, x, name=name: check(name, layer, x[0]))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.GroupNorm)
    ]
    try:
        forward_pass(module, pair)
    finally:
        for hook in hooks:
            hook.remove()


def _header(named: Mapping[str, Tensor]) -> int:
    """Return the bytes that safetensors puts in front of tensors."""
    zeros = {name: torch.zeros(p.shape, dtype=p.dtype, device="cpu") for name, p in named.items()}
    return len(tensors.save(zeros)) - sum(_bytes(p) for p in named.values())


def standing(module: nn.Module, training: TrainConfig, half: bool = False) -> int:
    """Return the bytes of training that do not depend on the batch: weights, gradients and optimiser state.

    Weights may be parts of larger tensors (`spare`). With `half`, the mean of the gradients is kept in bfloat16.
    """
    trained = sum(_bytes(p) for p in module.parameters() if p.requires_grad)
    copies = {"adam": 2, "sgd": 1 if training.momentum else 0}[training.optimiser]
    spared = trained // 2 if half and copies else 0
    around = sum(int(getattr(each, "spare", 0)) for each in module.modules())
    return sum(map(_bytes, module.parameters())) + around + trained * (1 + copies) - spared


@dataclass(frozen=True, slots=True)
class _Spent:
    """FLOPs of the forward pass and of both of a step, bytes that autograd saves and that operators touch, and work."""

    forward: int
    flops: int
    saved: int
    touched: list[float]
    work: Work


@dataclass(frozen=True, slots=True)
class _Turns(Step):
    """A step that picks every number in turn."""

    turns: Iterator[int] = field(default_factory=count)

    def pick(self, count: int) -> int:
        """Return the number whose turn it is."""
        return next(self.turns) % count


class _Watch(Watching, ABC):  # type: ignore[no-untyped-call]
    """Notes every operator that runs inside its block, and the operator's result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result

    @abstractmethod
    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Take notice of an operator."""


class _Counter(_Watch):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of every operator that `torch.utils.flop_counter` knows, and with `kinds` the work of each."""

    def __init__(self, kinds: bool = False) -> None:
        super().__init__()
        self.flops: int = 0
        self.touched = list[float]()
        self.work: dict[str, float] = defaultdict(float)
        self._kinds = kinds

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count an operator's FLOPs."""
        count = flops(func.overloadpacket, args, kwargs, result)
        self.flops += count
        if self._kinds:
            for kind, amount in operator_work(func, args, result, count / 2):
                self.work[kind] += amount
                if kind == "memory":
                    self.touched.append(amount)


def forward_pass(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Return the FLOPs of a forward pass, and the outputs; none of an objective that gives something else."""
    module.eval()
    with torch.no_grad(), plain_kernels(), _Counter() as counter:
        outputs = outputs_of(module, x)
    return int(counter.flops), outputs if isinstance(outputs, Tensor) else x.new_zeros(len(x), 1)


def first_step(examples: Examples, criterion: Criterion) -> Step:
    """Return a step of a seed of its own, which picks every number in turn."""
    labels = criterion.labels(examples.y)
    return _Turns(torch.Generator().manual_seed(0), labels=labels, criterion=criterion)


def _steps(module: nn.Module, x: Tensor, draws: int, criterion: Criterion, recompute: bool) -> _Spent:
    """Return the mean FLOPs of `draws` steps, and the largest memory of any."""
    forward, outputs = forward_pass(module, x)
    examples = Examples(x, criterion.blank(outputs))
    step = first_step(examples, criterion)
    spent = [_step(module, examples, step, recompute) for _ in range(draws)]
    kinds = {kind for counter, _ in spent for kind in counter.work}
    return _Spent(
        forward,
        sum(counter.flops for counter, _ in spent) // draws,
        max(saved for _, saved in spent),
        [amount for counter, _ in spent for amount in counter.touched],
        {kind: sum(counter.work[kind] for counter, _ in spent) / draws for kind in sorted(kinds)},
    )


def _step(module: nn.Module, examples: Examples, step: Step, recompute: bool) -> tuple[_Counter, int]:
    """Return what both passes of a step take, and the most bytes that autograd keeps at once."""
    known = {_storage(tensor) for tensor in (*module.parameters(), examples.x)}
    saved: dict[int, Tensor] = {}
    later = _Kept(known)

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    module.train()
    draw_from(module, step.draws)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad(), _Counter(kinds=True) as counter, kept(module, Levers(recompute), step.draws):
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(module, examples, step)
        forward = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        for tensor in saved.values() if recompute else ():
            later.keep(tensor)
        saved.clear()
        if weights:
            # What is recomputed is kept in the backward pass, in which what is done with goes.
            with saved_tensors_hooks(later.keep, lambda tensor: tensor) if recompute else nullcontext():
                torch.autograd.grad(loss, weights, allow_unused=True)
    return counter, max(forward, later.peak)


class _Kept:
    """Follows the memory of tensors until they are freed; `known` storages do not count."""

    def __init__(self, known: Collection[int]) -> None:
        self.peak: int = 0
        self._known = known
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Follow a tensor, and return it."""
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}  # type: ignore[no-untyped-call]
        if _storage(tensor) not in self._known:
            storage = tensor.untyped_storage()
            self._live[_storage(tensor)] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return tensor


class _Live(_Watch):  # type: ignore[no-untyped-call]
    """Follows the memory of every operator's results until they are freed; `known` storages do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.kept: _Kept = _Kept({_storage(tensor) for tensor in known})

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow an operator's results."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.kept.keep(tensor)


def _peak(module: nn.Module, x: Tensor, criterion: Criterion) -> int:
    """Return the most bytes that the results of a forward pass take at once, beside the weights and the batch."""
    examples = Examples(x, criterion.blank(forward_pass(module, x)[1]))
    step = first_step(examples, criterion)
    module.train()
    draw_from(module, step.draws)
    with torch.no_grad(), _Live((*module.parameters(), x)) as live:
        loss_of(module, examples, step)
    return int(live.kept.peak)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
