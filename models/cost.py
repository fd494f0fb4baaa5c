"""What training a sub-model costs, measured from the module itself."""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diastole.models.networks import ModelConfig, build
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sub-model costs a device.

    Attributes:
        parameters: trainable scalars.
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


@cache
def measure(model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> Cost:
    """Return the cost of `spec` under `training`, by taking a step on one example and one on two.

    Multiply-accumulates are half of what `torch.utils.flop_counter` counts (convolutions and matrix products;
    normalisation and pointwise work is not counted). Saved activations are what autograd really keeps; they grow by
    as much with each example.
    """
    # Not on meta tensors, though nothing would be computed there: some of their kernels are Python, and import
    # torch's compiler, which takes longer than the steps do.
    with torch.device("meta"):
        module = build(model, spec)
    zeros = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)
    with reference_plan():
        one, two = (_step(module, torch.zeros(size, *model.input_shape)) for size in (1, 2))
    weights = sum(_bytes(parameter) for parameter in module.parameters())
    saved = one.saved + (training.batch_size - 1) * (two.saved - one.saved)
    batch = training.batch_size * 4 * prod(model.input_shape)
    optimiser_copies = {"adam": 2, "sgd": 1 if training.momentum else 0}[training.optimiser]
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        forward_macs=one.forward // 2,
        training_macs=one.total // 2,
        memory=weights * (2 + optimiser_copies) + batch + saved,
        bytes_down=weights,
        bytes_up=weights,
        tensors=len(list(module.parameters())),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """FLOPs of the forward pass and of both passes of one step, and bytes that autograd saves in between."""

    forward: int
    total: int
    saved: int


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of every operator that `torch.utils.flop_counter` knows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

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
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def _step(module: nn.Module, batch: Tensor) -> _Step:
    known = {_storage(tensor) for tensor in (*module.parameters(), batch)}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    with torch.enable_grad(), _Counter() as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(module(batch), torch.zeros(len(batch), dtype=torch.int64))
        forward = counter.flops
        torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True)
    return _Step(forward, counter.flops, sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
