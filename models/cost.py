"""What training a sub-model costs, measured from the module itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

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
    """Return the cost of training a module, by running it once.

    Multiply-accumulates are half of what `torch.utils.flop_counter` counts (convolutions and matrix products;
    normalisation and pointwise work is not counted). Saved activations are what autograd really keeps. An objective
    that draws at random is measured on `draws` draws, if the module has an attribute of that name: the mean of its
    multiply-accumulates, the largest memory.

    Args:
        module: on the meta device, so that running it takes no memory; on another it runs there.
        input_shape: of one example.
        training: how it is trained.

    """
    device = next(module.parameters()).device
    examples = Examples(
        torch.zeros(training.batch_size, *input_shape, device=device),
        torch.zeros(training.batch_size, dtype=torch.int64, device=device),
    )
    with torch.no_grad(), _counter() as counter:
        module.eval()
        module(examples.x)
    forward = counter.get_total_flops()
    step, draws = Step(torch.Generator().manual_seed(0)), int(getattr(module, "draws", 1))
    traces = [_trace(module, examples, step) for _ in range(draws)]
    total, saved = sum(flops for flops, _ in traces) // draws, max(saved for _, saved in traces)
    weights = sum(_bytes(parameter) for parameter in module.parameters())
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        forward_macs=forward // (2 * training.batch_size),
        training_macs=total // (2 * training.batch_size),
        memory=standing(module, training) + _bytes(examples.x) + saved,
        bytes_down=weights,
        bytes_up=weights,
        tensors=len(list(module.parameters())),
    )


def standing(module: nn.Module, training: TrainConfig) -> int:
    """Return the bytes of training that do not depend on the batch: weights, gradients and optimiser state."""
    trained = sum(_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)
    optimiser_copies = {"adam": 2, "sgd": 1 if training.momentum else 0}[training.optimiser]
    return sum(_bytes(parameter) for parameter in module.parameters()) + trained * (1 + optimiser_copies)


def _trace(module: nn.Module, examples: Examples, step: Step) -> tuple[int, int]:
    """Return the FLOPs of forward and backward pass, and the bytes that autograd saves in between."""
    known = {_storage(tensor) for tensor in (*module.parameters(), examples.x)}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    module.train()
    with torch.enable_grad(), _counter() as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(module, examples, step)
        loss.backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _counter() -> FlopCounterMode:
    # torch's own formula multiplies the gradient of a grouped convolution's weights by the number of groups.
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """Return the FLOPs of a convolution's gradients: each of the two takes as many as the convolution itself."""
    return sum(wanted[:2]) * conv_flop_count(list(x_shape), list(weight_shape), list(grad_shape), transposed)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
