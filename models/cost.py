"""What training a sub-model costs, measured from the module itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diastole.models.seeds import reference_plan
from diastole.models.training import Examples, Step, TrainConfig, loss_of


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sub-model costs a device.

    Attributes:
        parameters: scalars.
        forward_macs: multiply-accumulates of the forward pass of one example.
        training_macs: multiply-accumulates of forward and backward pass of one example.
        memory: peak bytes of training at the given batch size: weights, gradients, optimiser state, the batch
            and the activations saved for the backward pass.
        bytes_down: tensor bytes a device downloads a round; a payload's header is not counted.
        bytes_up: likewise uploaded.
        tensors: parameter tensors.

    """

    parameters: int
    forward_macs: int
    training_macs: int
    memory: int
    bytes_down: int
    bytes_up: int
    tensors: int


def measure(module: nn.Module, input_shape: Sequence[int], training: TrainConfig) -> Cost:
    """Return the cost of training a module, by taking a step on one example and one on two.

    Multiply-accumulates are half of what `torch.utils.flop_counter` counts (convolutions and matrix products;
    normalisation and pointwise work is not counted). Saved activations are what autograd really keeps; they grow by
    as much with each example. An objective that draws at random is measured on `draws` draws, if the module has an
    attribute of that name: the mean of its multiply-accumulates, the largest memory. `Step.pick` then takes every
    choice in turn, so the mean is exact for an objective that picks one of `draws` things.

    Args:
        module: whose parameters may be on the meta device; it is then given zeros.
        input_shape: of one example.
        training: how it is trained.

    """
    # Not on meta tensors, though nothing would be computed there: some of their kernels are Python, and import
    # torch's compiler, which takes longer than the steps do.
    state = module.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
        module.load_state_dict(zeros, assign=True)
    draws = int(getattr(module, "draws", 1))
    with reference_plan():
        forward = _forward(module, torch.zeros(1, *input_shape))
        one, two = (_steps(module, torch.zeros(size, *input_shape), draws) for size in (1, 2))
    weights = sum(_bytes(parameter) for parameter in module.parameters())
    trained = sum(_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)
    saved = one.saved + (training.batch_size - 1) * (two.saved - one.saved)
    batch = training.batch_size * 4 * prod(input_shape)
    optimiser_copies = {"adam": 2, "sgd": 1 if training.momentum else 0}[training.optimiser]
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        forward_macs=forward // 2,
        training_macs=one.flops // 2,
        memory=weights + trained * (1 + optimiser_copies) + batch + saved,
        bytes_down=weights,
        bytes_up=weights,
        tensors=len(list(module.parameters())),
    )


@dataclass(frozen=True, slots=True)
class _Spent:
    """FLOPs of forward and backward pass of one step, and bytes that autograd saves in between."""

    flops: int
    saved: int


@dataclass(frozen=True, slots=True)
class _Turns(Step):
    """A step that picks every number in turn."""

    turns: Iterator[int] = field(default_factory=count)

    def pick(self, count: int) -> int:
        """Return the number whose turn it is."""
        return next(self.turns) % count


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of every operator that `torch.utils.flop_counter` knows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch's compiler is imported, to be told not to compile this class.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
        return result


def _forward(module: nn.Module, x: Tensor) -> int:
    module.eval()
    with torch.no_grad(), _Counter() as counter:
        module(x)
    return int(counter.flops)


def _steps(module: nn.Module, x: Tensor, draws: int) -> _Spent:
    """Return the mean FLOPs of some steps, and the largest memory of any."""
    examples = Examples(x, torch.zeros(len(x), dtype=torch.int64))
    step = _Turns(torch.Generator().manual_seed(0), labels=examples.y)
    spent = [_step(module, examples, step) for _ in range(draws)]
    return _Spent(sum(each.flops for each in spent) // draws, max(each.saved for each in spent))


def _step(module: nn.Module, examples: Examples, step: Step) -> _Spent:
    known = {_storage(tensor) for tensor in (*module.parameters(), examples.x)}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    module.train()
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad(), _Counter() as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(module, examples, step)
        torch.autograd.grad(loss, weights, allow_unused=True)
    return _Spent(counter.flops, sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
