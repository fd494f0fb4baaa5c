"""A dense layer by our own kernel, against PyTorch's in float64."""

import pytest
import torch
from torch import nn

from diastole.client.kernels import dense
from diastole.client.plans.apply import apply
from diastole.client.plans.layers import PlannedLinear
from diastole.client.plans.plan import Plan
from diastole.models.training import Examples, TrainConfig, fit

SHAPES = [(10, 1030, 33), (1, 1, 1), (7, 515, 4), (32, 513, 130), (2, 7, 9)]


def _drawn(n: int, inside: int, outside: int) -> list[torch.Tensor]:
    return [torch.randn(n, inside), torch.randn(outside, inside), torch.randn(outside)]


def _found(function, tensors, gradient):
    tensors = [each.clone().requires_grad_() for each in tensors]
    y = function(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, gradient.to(y.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_right(shape: tuple[int, int, int]) -> None:
    tensors, gradient = _drawn(*shape), torch.randn(shape[0], shape[2])
    exact = _found(dense.reference, [each.double() for each in tensors], gradient)
    for ours, expected in zip(_found(dense.dense, tensors, gradient), exact, strict=True):
        assert float((ours - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max())) * shape[1] ** 0.5


def test_threads_do_not_change_the_bits() -> None:
    tensors, gradient = _drawn(10, 1030, 130), torch.randn(10, 130)
    alone, before = _found(dense.dense, tensors, gradient), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = _found(dense.dense, tensors, gradient)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))


def test_gradients_can_be_differentiated_again() -> None:
    tensors = [each.double().requires_grad_() for each in _drawn(3, 5, 2)]
    singles = [each.detach().float().requires_grad_() for each in tensors]
    seconds = []
    for given, function in ((tensors, dense.reference), (singles, dense.dense)):
        (first,) = torch.autograd.grad((function(*given) ** 3).sum(), given[1:2], create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), given[0])[0])
    assert torch.allclose(seconds[0].float(), seconds[1], rtol=1e-4)


@pytest.mark.parametrize(("momentum", "clip"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1)])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_training_is_that_of_plain_layers(momentum: float, clip: float, twice: bool) -> None:
    """Also where a weight is used twice, so that its two gradients are added up, and where they are clipped."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.large, self.last = nn.Linear(12, 512), nn.Linear(512, 512), nn.Linear(512, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.large(torch.relu(self.first(x)))
            return self.last(self.large(torch.relu(y)) if twice else y)

    examples = Examples(torch.randn(25, 12), torch.arange(25) % 3)
    training = TrainConfig(batch_size=10, learning_rate=0.1, momentum=momentum, clip=clip)
    ours, plain = Net(), Net()
    plain.load_state_dict(ours.state_dict())
    apply(ours, Plan(dense=True))
    assert [type(layer) for layer in ours.children()] == [nn.Linear, PlannedLinear, nn.Linear]
    for module in (ours, plain):
        fit(module, examples, training, torch.Generator().manual_seed(1))
    for (name, mine), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6), name


@pytest.mark.skipif(not dense.available(), reason="no native library")
def test_a_weight_that_is_watched_gets_its_gradient() -> None:
    layer, seen = nn.Linear(512, 512), []
    apply(layer, Plan(dense=True))
    layer.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    fit(layer, Examples(torch.randn(4, 512), torch.arange(4)), TrainConfig(momentum=0.0), torch.Generator())
    assert seen == [layer.weight.shape]
