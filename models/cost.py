"""What training a sub-model costs, measured from the module itself."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diastole.models.networks import ModelConfig, build
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


def measure(model: ModelConfig, spec: SubModelSpec, training: TrainConfig) -> Cost:
    """Return the cost of `spec` under `training`, by running the module on meta tensors.

    Multiply-accumulates are half of what `torch.utils.flop_counter` counts (convolutions and matrix products;
    normalisation and pointwise work is not counted). Saved activations are what autograd really keeps.
    """
    with torch.device("meta"):
        module = build(model, spec)
        batch = torch.zeros(training.batch_size, *model.input_shape)
        labels = torch.zeros(training.batch_size, dtype=torch.int64)
    weights = sum(_bytes(parameter) for parameter in module.parameters())
    forward, total, saved = _trace(module, batch, labels)
    optimiser_copies = {"adam": 2, "sgd": 1 if training.momentum else 0}[training.optimiser]
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        forward_macs=forward // (2 * training.batch_size),
        training_macs=total // (2 * training.batch_size),
        memory=weights * (2 + optimiser_copies) + _bytes(batch) + saved,
        bytes_down=weights,
        bytes_up=weights,
        tensors=len(list(module.parameters())),
    )


def _trace(module: nn.Module, batch: Tensor, labels: Tensor) -> tuple[int, int, int]:
    """Return FLOPs of the forward pass, FLOPs of both passes, and bytes that autograd saves in between."""
    known = {_storage(tensor) for tensor in (*module.parameters(), batch)}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(module(batch), labels)
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
        total = counter.get_total_flops()
    return forward, total, sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
