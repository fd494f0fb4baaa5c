"""GroupNorm in channels-last memory against PyTorch's in float64."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from diastole.client.kernels import groupnorm
from diastole.client.kernels.lying import LAST
from diastole.models.native.library import INT, INT64, POINTER, function
from diastole.models.networks.cnn import CNN

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
GUARD = 64


def gradients(y, inputs, gradient):
    return torch.autograd.grad(y, [each for each in inputs if each is not None], gradient.to(y.dtype))


def against_float64(x, groups, weight, bias, after, gradient):
    """Return ours and the exact `[y, dx, dweight, dbias]` of given float32 tensors."""
    given = [None if each is None else each.requires_grad_() for each in (x, weight, bias)]
    y = groupnorm.group_norm_then(given[0], after, groups, *given[1:], 1e-5)
    exact = [None if each is None else each.detach().double().requires_grad_() for each in given]
    z = F.group_norm(exact[0], groups, *exact[1:], 1e-5)
    # Through ReLU where ours lets it through: values that round to the other side of 0 are no mistake.
    z = z * (y > 0) if after == "relu" else F.hardswish(z) if after == "hardswish" else z
    return [y, *gradients(y, given, gradient)], [z, *gradients(z, exact, gradient)]


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.booleans(), st.sampled_from(["nothing", "relu", "hardswish"]), st.integers(0, 1000))
def test_close_to_float64(shape, affine, after, seed):
    n, groups, each, height, width = shape
    if each * height * width == 1:
        height = 2
    draw = torch.Generator().manual_seed(seed)
    channels = groups * each
    x = (torch.randn(n, channels, height, width, generator=draw) * 3 + 5).contiguous(memory_format=LAST)
    weight, bias = (torch.randn(channels, generator=draw) if affine else None for _ in range(2))
    ours, exact = against_float64(x, groups, weight, bias, after, torch.randn(x.shape, generator=draw))
    for one, other in zip(ours, exact, strict=True):
        # The input's own rounding is amplified by the deviation, which may be small in groups of two values.
        torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=2e-4 * (1 + float(other.detach().abs().max())))


@pytest.mark.skipif(not groupnorm.available(), reason="no native library")
@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (12, 3), (17, 17), (20, 1), (64, 16)])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_as_precise_as_torch_in_channels_first(channels, groups, shift):
    draw = torch.Generator().manual_seed(3)
    x = (torch.randn(2, channels, 12, 13, generator=draw) + shift).contiguous(memory_format=LAST)
    weight, bias, gradient = (torch.randn(*size, generator=draw) for size in [(channels,), (channels,), x.shape])
    ours, exact = against_float64(x, groups, weight, bias, "nothing", gradient)
    first = x.detach().contiguous().requires_grad_()
    theirs = F.group_norm(first, groups, weight, bias, 1e-5)
    theirs = [theirs, *gradients(theirs, [first, weight, bias], gradient)]
    for one, other, best in zip(ours, theirs, exact, strict=True):
        bound = 2e-6 * best.detach().abs().max()
        assert (one - best).abs().max() <= max(bound, (other - best).abs().max())


def test_bfloat16_rounds_once():
    x = torch.randn(2, 24, 7, 5).bfloat16().contiguous(memory_format=LAST)
    weight, bias = torch.randn(24), torch.randn(24)
    exact = F.group_norm(x.double(), 6, weight.double(), bias.double(), 1e-5)
    ours = groupnorm.group_norm(x, 6, weight, bias, 1e-5)
    assert ours.dtype == (torch.bfloat16 if groupnorm.available() else F.group_norm(x, 6, weight, bias).dtype)
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-5)


def test_same_bits_on_one_thread_and_two():
    x = torch.randn(5, 12, 9, 9).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = (torch.randn(12).requires_grad_() for _ in range(2))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = groupnorm.group_norm_then(x, "relu", 3, weight, bias)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, weight, bias])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_gradients_can_be_differentiated():
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = (torch.randn(8).requires_grad_() for _ in range(2))
    found = []
    plain = groupnorm.reference(x, 2, weight, bias, 1e-5, "relu")
    for y in (groupnorm.group_norm_then(x, "relu", 2, weight, bias), plain):
        (gradient,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), [x, weight]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.sampled_from(["nothing", "relu"]), st.integers(0, 1000))
def test_with_something_added_close_to_float64(shape, after, seed):
    n, groups, each, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    size, channels = (n, groups * each, height + 1, width), groups * each
    x, added, gradient = (torch.randn(size, generator=draw).contiguous(memory_format=LAST) for _ in range(3))
    inputs = [x, added, *(torch.randn(channels, generator=draw) for _ in range(2))]
    ours = [each.clone().requires_grad_() for each in inputs]
    exact = [each.double().requires_grad_() for each in inputs]
    y = groupnorm.group_norm_add(ours[0], ours[1], after, groups, *ours[2:])
    z = F.group_norm(exact[0], groups, *exact[2:], 1e-5) + exact[1]
    z = z * (y > 0) if after == "relu" else z
    found, expected = ([out, *gradients(out, given, gradient)] for out, given in ((y, ours), (z, exact)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=2e-4 * (1 + float(other.detach().abs().max())))


def test_gradients_of_a_sum_can_be_differentiated():
    inputs = [torch.randn(2, 8, 5, 4).contiguous(memory_format=LAST).requires_grad_() for _ in range(2)]
    weight, found = torch.randn(8).requires_grad_(), []
    x, added = inputs
    plain = groupnorm.reference(x, 2, weight, None, 1e-5, "relu", added=added)
    for y in (groupnorm.group_norm_add(x, added, "relu", 2, weight), plain):
        first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum((each**2).sum() for each in first), [*inputs, weight]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


# PyTorch's own crashes here: in channels-last memory, where the input needs no gradient.
@pytest.mark.skipif(not groupnorm.available(), reason="no native library")
def test_only_wanted_gradients():
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=LAST)
    weight, bias = torch.randn(8), torch.randn(8).requires_grad_()
    groupnorm.group_norm(x, 2, weight, bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((8,), 40.0))
    assert weight.grad is None


@pytest.mark.skipif(not groupnorm.available(), reason="no native library")
@pytest.mark.parametrize(("channels", "pixels"), [(4, 1), (13, 9), (12, 50), (64, 16)])
def test_nothing_is_written_outside(channels, pixels):
    n, groups = 2, channels // (4 if channels % 4 == 0 else 1)
    values = n * pixels * channels
    sizes = [values, n * groups, n * groups, values, values, n * 2 * channels]
    kinds = [torch.float64 if at == 1 else torch.float32 for at in range(6)]
    guarded = [torch.full((size + 2 * GUARD,), 5.0, dtype=kind) for size, kind in zip(sizes, kinds, strict=True)]
    out, means, rstds, back, to_added, parameters = (each.data_ptr() + GUARD * each.element_size() for each in guarded)
    x, added, gradient, kept, factor = *[torch.randn(values) for _ in range(4)], torch.randn(channels)
    shape = (n, pixels, channels, groups)
    forward = function("groupnorm", "diastole_normalise_f32", *[POINTER] * 7, *[INT64] * 4, ctypes.c_double, INT, INT)
    backward = function("groupnorm", "diastole_differentiate_f32", *[POINTER] * 10, *[INT64] * 4, INT, INT)
    assert not forward(x.data_ptr(), added.data_ptr(), factor.data_ptr(), None, out, means, rstds, *shape, 1e-5, 0, 1)
    given = (gradient.data_ptr(), x.data_ptr(), kept.data_ptr(), factor.data_ptr(), None)
    assert not backward(*given, means, rstds, back, to_added, parameters, *shape, 1, 1)
    for each in guarded:
        assert (each[:GUARD] == 5).all()
        assert (each[-GUARD:] == 5).all()
        assert (each[GUARD:-GUARD] != 5).all()


def test_a_network_computes_the_same():
    torch.manual_seed(0)
    network = CNN((3, 8, 8), 4, (8, 16), 4)
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    plain = torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))
    network.to(memory_format=LAST)
    for stage in network.stages:
        norm = stage[1]
        norm.forward = lambda z, norm=norm: groupnorm.group_norm(z, norm.num_groups, norm.weight, norm.bias, norm.eps)
    x = x.contiguous(memory_format=LAST)
    ours = torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
