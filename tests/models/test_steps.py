import pytest
import torch
from torch import Tensor

from diastole.models.steps import buffers, step
from diastole.models.training import TrainConfig

SHAPES = [(3, 17), (5,), (), (2, 3, 4, 4)]


def optimiser(training: TrainConfig, weights: list[Tensor]) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimiser == "adam":
        return torch.optim.Adam(weights, lr=rate, weight_decay=decay)
    return torch.optim.SGD(weights, lr=rate, momentum=training.momentum, weight_decay=decay)


@pytest.mark.parametrize("devices", [0, 4])
@pytest.mark.parametrize(
    "training",
    [
        TrainConfig(momentum=0.0),
        TrainConfig(momentum=0.0, weight_decay=0.1),
        TrainConfig(momentum=0.9, weight_decay=0.1),
        TrainConfig(optimiser="adam", weight_decay=0.1),
        TrainConfig(optimiser="adam", learning_rate=1e-3),
    ],
)
def test_weights_and_stacks_of_weights_get_the_bits_of_torch_optim(training: TrainConfig, devices: int) -> None:
    def stacked(tensor: Tensor) -> Tensor:
        return tensor.detach().expand(devices, *tensor.shape).clone() if devices else tensor.detach().clone()

    draws = torch.Generator().manual_seed(1)
    theirs = [torch.randn(shape, generator=draws).requires_grad_() for shape in SHAPES]
    ours = [stacked(weight) for weight in theirs]
    reference, memory = optimiser(training, theirs), buffers(training, ours)
    for number in range(1, 6):
        for weight in theirs:
            weight.grad = torch.randn(weight.shape, generator=draws)
        gradients = [stacked(weight.grad) for weight in theirs if weight.grad is not None]
        reference.step()
        step(training, ours, gradients, memory, number)
        for mine, weight in zip(ours, theirs, strict=True):
            assert torch.equal(mine, stacked(weight))
