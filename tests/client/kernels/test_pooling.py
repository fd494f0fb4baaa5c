"""Max-pooling of 2x2 squares: as PyTorch's, ties and NaN included, and within its own memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.client.kernels import pooling
from diastole.client.kernels.lying import LAST
from diastole.models.native.library import INT, INT64, POINTER, function

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 37), st.integers(2, 9), st.integers(2, 9))
GUARD = 64


def few_values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return numbers of which many are equal, and some are infinite."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, shape, generator=draw).float()
    return x.masked_fill(x == -2, -torch.inf).contiguous(memory_format=LAST)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000))
def test_same_as_torch_to_the_bit(shape, relu, dtype, seed):
    x = few_values(shape, seed).to(dtype).requires_grad_()
    ours = (pooling.relu_pool if relu else pooling.pool)(x)
    gradient = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    (to_x,) = torch.autograd.grad(ours, x, gradient)
    theirs = pooling.reference(x, relu)
    (to_x_theirs,) = torch.autograd.grad(theirs, x, gradient)
    assert torch.equal(ours, theirs)
    assert torch.equal(to_x, to_x_theirs)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_spreads_as_in_torch(relu):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 8, 8, generator=draw)
    x = x.masked_fill(torch.rand(x.shape, generator=draw) < 0.3, torch.nan).contiguous(memory_format=LAST)
    x.requires_grad_()
    ours, theirs = (pooling.relu_pool if relu else pooling.pool)(x), pooling.reference(x, relu)
    assert torch.equal(ours.nan_to_num(-7), theirs.nan_to_num(-7))
    gradient = torch.randn(ours.shape, generator=draw)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)))


@pytest.mark.skipif(not pooling.available(), reason="no native library")
def test_only_bytes_are_kept():
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=LAST).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = pooling.relu_pool(x)
    assert [(t.dtype, t.numel()) for t in kept] == [(torch.uint8, out.numel())]


def test_gradients_can_be_differentiated():
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=LAST).requires_grad_()
    found = []
    for y in (pooling.relu_pool(x), pooling.reference(x, relu=True)):
        (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("x", [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6).double(), torch.randn(3, 4, 6)])
def test_what_kernels_do_not_take_is_torchs(x):
    assert torch.equal(pooling.relu_pool(x), pooling.reference(x, relu=True))


@pytest.mark.skipif(not pooling.available(), reason="no native library")
@pytest.mark.parametrize("shape", [(2, 1, 3, 2), (1, 13, 5, 7), (2, 40, 2, 3)])
def test_nothing_is_written_outside(shape):
    n, channels, height, width = shape
    small, large = n * channels * (height // 2) * (width // 2), n * channels * height * width
    out, back = (torch.full((count + 2 * GUARD,), 5.0) for count in (small, large))
    source = torch.full((small + 2 * GUARD,), 77, dtype=torch.uint8)
    x = torch.randn(large)
    inner = [each.data_ptr() + GUARD * each.element_size() for each in (out, source, back)]
    forward = function("pooling", "diastole_pool_f32", *[POINTER] * 3, *[INT64] * 4, INT, INT)
    backward = function("pooling", "diastole_spread_f32", *[POINTER] * 3, *[INT64] * 4, INT)
    forward(x.data_ptr(), inner[0], inner[1], n, height, width, channels, 1, 1)
    backward(inner[0], inner[1], inner[2], n, height, width, channels, 1)
    for each, value in ((out, 5.0), (source, 77), (back, 5.0)):
        assert (each[:GUARD] == value).all()
        assert (each[-GUARD:] == value).all()
        assert (each[GUARD:-GUARD] != value).all()
