"""GELU by our own kernel against PyTorch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from diastole.client.kernels import gelu
from diastole.client.kernels.lying import LAST
from diastole.models.native.library import INT, INT64, POINTER, function


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 32, 17, 16)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 100.0])
def test_close_to_float64(size, scale):
    draw = torch.Generator().manual_seed(1)
    x = (scale * torch.randn(size, generator=draw)).contiguous(memory_format=LAST).requires_grad_()
    exact = x.detach().double().requires_grad_()
    gradient = torch.randn(size, generator=draw)
    y, z = gelu.gelu(x), F.gelu(exact)
    torch.testing.assert_close(y.double(), z, rtol=1e-6, atol=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(y, x, gradient), torch.autograd.grad(z, exact, gradient.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-5)


def test_what_is_not_finite():
    x = torch.tensor([float("inf"), float("nan"), -200.0, 0.0]).view(1, 4, 1, 1).contiguous(memory_format=LAST)
    # Not PyTorch's own, which with AVX-512 gives NaN for infinity.
    limits = torch.tensor([float("inf"), float("nan"), 0.0, 0.0]).view_as(x)
    torch.testing.assert_close(gelu.gelu(x), limits, equal_nan=True)


def test_gradients_can_be_differentiated():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float32).contiguous(memory_format=LAST).requires_grad_()
    found = []
    for y in (gelu.gelu(x), gelu.reference(x)):
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((first**2).sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not gelu.available(), reason="no native library")
@pytest.mark.parametrize("count", [1, 15, 64, 20_001])
def test_nothing_is_written_outside(count):
    x, out = torch.randn(count), torch.full((count + 128,), 5.0)
    forward = function("gelu", "diastole_gelu_f32", POINTER, POINTER, INT64, INT)
    backward = function("gelu", "diastole_gelu_backward_f32", POINTER, POINTER, POINTER, INT64, INT)
    assert not forward(x.data_ptr(), out.data_ptr() + 64 * 4, count, 1)
    assert not backward(x.data_ptr(), x.data_ptr(), out.data_ptr() + 64 * 4, count, 1)
    assert (out[:64] == 5).all()
    assert (out[-64:] == 5).all()
