"""GroupNorm, ReLU and pooling in one against PyTorch's in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.kernels import groupnorm, normpool, pooling
from diastole.client.kernels.lying import LAST

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 8), st.integers(2, 9), st.integers(2, 9))


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.booleans(), st.integers(0, 1000))
def test_close_to_float64(shape, affine, seed):
    n, groups, each, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    channels = groups * each
    x = (torch.randn(n, channels, height, width, generator=draw) + 5).contiguous(memory_format=LAST)
    factors = [torch.randn(channels, generator=draw) if affine else None for _ in range(2)]
    given = [each if each is None else each.requires_grad_() for each in (x, *factors)]
    exact = [each if each is None else each.detach().double().requires_grad_() for each in given]
    ours = normpool.group_norm_relu_pool(given[0], groups, *given[1:])
    best = normpool.reference(exact[0], groups, *exact[1:], 1e-5)
    torch.testing.assert_close(ours.double(), best, rtol=1e-4, atol=1e-4)
    gradient = torch.randn(ours.shape, generator=draw)
    found = torch.autograd.grad(ours, [each for each in given if each is not None], gradient)
    wanted = torch.autograd.grad(best, [each for each in exact if each is not None], gradient.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=2e-4 * (1 + float(other.abs().max())))


def test_same_as_one_after_the_other():
    x = torch.randn(3, 20, 9, 8).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = (torch.randn(20).requires_grad_() for _ in range(2))
    fused = normpool.group_norm_relu_pool(x, 5, weight, bias)
    parts = pooling.relu_pool(groupnorm.group_norm(x, 5, weight, bias))
    assert torch.equal(fused, parts)
    gradient = torch.randn(fused.shape)
    torch.testing.assert_close(*(torch.autograd.grad(y, [x, weight, bias], gradient) for y in (fused, parts)))


def test_gradients_can_be_differentiated():
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = (torch.randn(8).requires_grad_() for _ in range(2))
    found = []
    for y in (normpool.group_norm_relu_pool(x, 2, weight, bias), normpool.reference(x, 2, weight, bias, 1e-5)):
        (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), [x, weight]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
