"""Two 1x1 convolutions with GELU between them by one kernel, against PyTorch's in float64."""

import pytest
import torch

from diastole.client.kernels import perceptron
from diastole.client.kernels.lying import LAST, kernel

SHAPES = [((2, 32, 9, 8), 128), ((1, 1, 1, 1), 1), ((3, 7, 11, 13), 21), ((2, 40, 16, 16), 70), ((1, 129, 3, 5), 17)]


def _drawn(size, inside, scale=1.0):
    """Return x, widen, bias, narrow, last, added."""
    draw = torch.Generator().manual_seed(1)
    channels = size[1]
    sizes = [size, (inside, channels, 1, 1), (inside,), (channels, inside, 1, 1), (channels,), size]
    found = [scale * torch.randn(each, generator=draw) for each in sizes]
    return [each.contiguous(memory_format=LAST) if each.ndim == 4 else each for each in found]


def _gradients(function, tensors, gradient):
    tensors = [each.clone().requires_grad_() for each in tensors]
    y = function(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, gradient.to(y.dtype))]


@pytest.mark.parametrize(("size", "inside"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_close_to_float64(size, inside, threads):
    tensors = _drawn(size, inside)
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=LAST)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = _gradients(perceptron.perceptron, tensors, gradient)
    finally:
        torch.set_num_threads(before)
    exact = _gradients(perceptron.reference, [each.double() for each in tensors], gradient)
    for found, wanted in zip(ours, exact, strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= 5e-6 * float(wanted.abs().max())


def test_the_same_bits_on_any_number_of_threads():
    tensors = _drawn((8, 24, 16, 16), 96)
    gradient, before, found = tensors[0].flip(0).contiguous(memory_format=LAST), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(_gradients(perceptron.perceptron, tensors, gradient))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_without_biases_and_for_some_gradients_alone():
    x, widen, _, narrow, _, added = _drawn((2, 8, 5, 5), 32)
    narrow.requires_grad_()
    y = perceptron.perceptron(x, widen, None, narrow, None, added)
    wanted = perceptron.reference(x, widen, None, narrow, None, added)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-4)
    ours, theirs = (torch.autograd.grad(each.sum(), narrow)[0] for each in (y, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_gradients_can_be_differentiated():
    found = []
    for function in (perceptron.perceptron, perceptron.reference):
        tensors = [each.requires_grad_() for each in _drawn((2, 3, 4, 5), 8)]
        first = torch.autograd.grad((function(*tensors) ** 2).sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum((each**2).sum() for each in first), tensors[:5]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.skipif(not perceptron.available(), reason="no native library")
@pytest.mark.parametrize(("size", "inside"), SHAPES)
def test_nothing_is_written_outside(size, inside):
    room, sentinel = 64, 5.0
    n, channels, height, width = size
    numbers = (n * height * width, channels, inside, 1)
    x, widen, bias, narrow, last, added = _drawn(size, inside)
    many = 1024 * kernel("perceptron", "perceptron_kept", torch.float32, *perceptron.SIZES[:2])(numbers[0], inside)

    def walled(count):
        return torch.full((count + 2 * room,), sentinel)

    def start(each):
        return each.data_ptr() + 4 * room

    kept, out = walled(many), walled(x.numel())
    pointers = [each.data_ptr() for each in (x, added, widen, bias, narrow, last)]
    forward = kernel("perceptron", "perceptron", torch.float32, *[perceptron.POINTER] * 8, *perceptron.SIZES)
    assert not forward(*pointers, start(kept), start(out), *numbers)
    results = [walled(each.numel()) for each in (x, widen, bias, narrow, last)]
    backward = kernel("perceptron", "perceptron_backward", torch.float32, *[perceptron.POINTER] * 10, *perceptron.SIZES)
    given = [x.data_ptr(), x.data_ptr(), start(kept), widen.data_ptr(), narrow.data_ptr()]
    assert not backward(*given, *map(start, results), *numbers)
    for each in (kept, out, *results):
        assert (each[:room] == sentinel).all()
        assert (each[-room:] == sentinel).all()
