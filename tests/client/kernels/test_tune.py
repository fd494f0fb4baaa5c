"""Convolutions that compute the frozen BatchNorm behind them: the same function, and less kept."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from diastole.client.kernels.tune import tune


def network(bias: bool = True, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, groups=2, bias=bias), nn.BatchNorm2d(4, affine=affine)),
    ).double()
    with torch.no_grad():
        for value in [*made.parameters(), *(v for n, v in made.named_buffers() if "running" in n)]:
            value.uniform_(0.2, 1.5)
    return made.eval()


def run(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_same_function_and_gradients(bias, affine):
    plain = network(bias, affine)
    tuned = deepcopy(plain)
    assert tune(tuned) == ["0", "3.0"]
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(run(tuned, x), run(plain, x))
    assert list(tuned.state_dict()) == list(plain.state_dict())


def test_statistics_of_the_batch_are_left_alone():
    plain, tuned = network().train(), network()
    tune(tuned)
    tuned.train()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    assert all(torch.equal(one, other) for one, other in zip(run(tuned, x), run(plain, x), strict=True))
    assert torch.equal(tuned[1].running_mean, plain[1].running_mean)


def test_the_input_of_the_norm_is_not_kept():
    def kept(module: nn.Module) -> int:
        seen = {}
        note = lambda t: seen.__setitem__(t.data_ptr(), t.nbytes) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = module(x)
        y.sum()
        return sum(seen.values())

    plain, tuned = network(), network()
    tune(tuned)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    # The map between the first convolution and its norm, and the one between the second's.
    assert kept(plain) - kept(tuned) > 4 * 8 * 16 * 16 * 8


def test_copies_use_their_own_norm():
    tuned = network()
    tune(tuned)
    copy = deepcopy(tuned)
    with torch.no_grad():
        copy[1].weight.zero_()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    assert not torch.equal(tuned(x), copy(x))
    assert copy[0].__dict__["norm"] is copy[1]


def test_only_plain_neighbours():
    shared = nn.Conv2d(4, 4, 1)
    hooked = nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    module = nn.Sequential(shared, nn.BatchNorm2d(4), shared, nn.BatchNorm2d(4), hooked, nn.BatchNorm2d(4))
    assert tune(module) == []
