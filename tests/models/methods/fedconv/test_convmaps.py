import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diastole.models.methods.fedconv import convmaps

PATHS = {"direct": 10**9, "fft": 0}
"""What DIRECT_TAPS must be for every kernel to go each way."""

Map = Callable[[Tensor, Tensor], Tensor]


def by(path: str, apply: Map, image: Tensor, kernel: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convmaps, "DIRECT_TAPS", PATHS[path])
        return apply(image, kernel)


def slow_compress(image: Tensor, kernel: Tensor) -> Tensor:
    positions, height, width = kernel.shape
    out = torch.zeros(positions, image.shape[1] - height + 1, image.shape[2] - width + 1, dtype=torch.float64)
    for p, row, column in itertools.product(*map(range, out.shape)):
        for h in range(height):
            for w in range(width):
                out[p, row, column] += image[p, row + h, column + w] * kernel[p, h, w]
    return out


def slow_dilate(image: Tensor, kernel: Tensor) -> Tensor:
    positions, height, width = kernel.shape
    out = torch.zeros(positions, image.shape[1] + height - 1, image.shape[2] + width - 1, dtype=torch.float64)
    for p, row, column in itertools.product(*map(range, image.shape)):
        for h in range(height):
            for w in range(width):
                out[p, row + h, column + w] += image[p, row, column] * kernel[p, h, w]
    return out


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A large image, its kernel and a small image, float64, of random shapes that fit each other."""
    positions, rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    # A kernel on either side of DIRECT_TAPS, square or a strip.
    height, width = draw(st.sampled_from([(1, 1), (2, 3), (1, 7), (5, 1), (8, 8), (5, 13), (1, 65), (66, 1)]))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    large = normal(positions, rows + height - 1, columns + width - 1)
    return large, normal(positions, height, width), normal(positions, rows, columns)


@given(problems())
@settings(deadline=None, max_examples=15)
def test_both_maps_are_what_four_loops_make(case: tuple[Tensor, Tensor, Tensor]) -> None:
    large, kernel, small = case
    compressed, dilated = slow_compress(large, kernel), slow_dilate(small, kernel)
    assert compressed.shape == small.shape
    assert dilated.shape == large.shape
    # The sums have at most 66 terms of order one.
    torch.testing.assert_close(convmaps.compress(large, kernel), compressed, rtol=0, atol=1e-12)
    torch.testing.assert_close(convmaps.dilate(small, kernel), dilated, rtol=0, atol=1e-12)
    for path in PATHS:
        torch.testing.assert_close(by(path, convmaps.compress, large, kernel), compressed, rtol=0, atol=1e-12)
        torch.testing.assert_close(by(path, convmaps.dilate, small, kernel), dilated, rtol=0, atol=1e-12)


@given(problems())
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("path", PATHS)
def test_dilate_is_the_transpose_of_compress(path: str, case: tuple[Tensor, Tensor, Tensor]) -> None:
    large, kernel, small = case
    there = (by(path, convmaps.compress, large, kernel) * small).sum().item()
    back = (large * by(path, convmaps.dilate, small, kernel)).sum().item()
    size = large.norm() * kernel.norm() * small.norm()
    assert there == pytest.approx(back, rel=0, abs=1e-13 * size.item())


@given(problems())
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("name", ["compress", "dilate"])
def test_both_paths_have_the_same_gradients(name: str, case: tuple[Tensor, Tensor, Tensor]) -> None:
    large, kernel, small = case
    apply, image, other = (convmaps.compress, large, small) if name == "compress" else (convmaps.dilate, small, large)
    gradients = []
    for path in PATHS:
        leaves = (image.clone().requires_grad_(), kernel.clone().requires_grad_())
        gradients.append(torch.autograd.grad((by(path, apply, *leaves) * other).sum(), leaves))
    for direct, fft in zip(*gradients, strict=True):
        torch.testing.assert_close(fft, direct, rtol=0, atol=1e-12 * max(1.0, direct.abs().max().item()))


@pytest.mark.parametrize("name", ["compress", "dilate"])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_those_of_finite_differences(path: str, name: str) -> None:
    draws = torch.Generator().manual_seed(3)
    image = torch.randn(2, 5, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(2, 3, 2, generator=draws, dtype=torch.float64, requires_grad=True)
    apply = getattr(convmaps, name)
    assert torch.autograd.gradcheck(lambda x, k: by(path, apply, x, k), (image, kernel))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_weights_undoes_images_and_each_position_is_one_image(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    image = convmaps.images(weight)
    assert torch.equal(convmaps.weights(image, weight.shape), weight)
    if len(shape) == 1:
        assert torch.equal(image[0, 0], weight)
        return
    positions = list(itertools.product(*map(range, shape[2:])))
    assert image.shape == (len(positions), shape[0], shape[1])
    for p, position in enumerate(positions):
        assert torch.equal(image[p], weight[(slice(None), slice(None), *position)])


@pytest.mark.parametrize(("large", "small"), [((16, 8, 3, 3), (4, 2, 3, 3)), ((5, 20), (5, 6)), ((9,), (4,))])
@pytest.mark.parametrize("path", PATHS)
def test_a_one_at_the_origin_takes_the_prefix_and_puts_it_back(
    path: str, large: tuple[int, ...], small: tuple[int, ...]
) -> None:
    weight = torch.randn(large, generator=torch.Generator().manual_seed(0))
    prefix = weight[tuple(slice(0, size) for size in small)]
    image, target = convmaps.images(weight), convmaps.images(prefix)
    kernel = torch.zeros(len(image), image.shape[1] - target.shape[1] + 1, image.shape[2] - target.shape[2] + 1)
    kernel[:, 0, 0] = 1.0
    padded = torch.zeros_like(image)
    padded[:, : target.shape[1], : target.shape[2]] = target
    # FFT rounds in units of the image's largest value, about 4; the direct sum adds zeros and is exact.
    atol = 0.0 if path == "direct" else 1e-6
    torch.testing.assert_close(by(path, convmaps.compress, image, kernel), target, rtol=0, atol=atol)
    torch.testing.assert_close(by(path, convmaps.dilate, target, kernel), padded, rtol=0, atol=atol)


@pytest.mark.parametrize("path", PATHS)
def test_no_change_dilates_to_exactly_no_change(path: str) -> None:
    kernel = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert not by(path, convmaps.dilate, torch.zeros(3, 2, 2), kernel).any()
