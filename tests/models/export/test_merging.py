"""Convolutions that are one."""

import pytest
import torch
from torch import nn

from diastole.models.export.merging import affine, can_merge, merge, scaled


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernels", [(3, 3), (1, 3), (3, 1), (2, 5)])
@pytest.mark.parametrize("flat", [True, False])
def test_a_merged_convolution_is_two(stride: int, kernels: tuple[int, int], flat: bool) -> None:
    kind = nn.Conv1d if flat else nn.Conv2d
    first, second = kind(3, 5, kernels[0], stride, 1), kind(5, 4, kernels[1], 2, 0, bias=False)
    scale, shift, x = torch.randn(5), torch.randn(5), torch.randn(2, 3, *[17] * (1 if flat else 2))
    shape = (1, -1, *[1] * (1 if flat else 2))
    made = merge(first, scale, shift, second)
    wanted = second(first(x) * scale.view(shape) + shift.view(shape))
    assert torch.allclose(made(x), wanted, atol=1e-4)
    assert torch.allclose(scaled(first, scale, shift)(x), first(x) * scale.view(shape) + shift.view(shape), atol=1e-5)


def test_only_the_border_differs_where_the_second_one_pads() -> None:
    first, second, x = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1), torch.randn(1, 2, 8, 8)
    apart = (merge(first, torch.ones(3), torch.zeros(3), second)(x) - second(first(x))).abs()
    assert float(apart[..., 1:-1, 1:-1].max()) < 1e-5 < float(apart.max())


def test_the_closest_affine_map_is_that_of_least_squares() -> None:
    before, after = torch.randn(6, 3, 4), torch.randn(6, 3, 4)
    before[:, 1] = 2.0
    scale, shift = affine(before, after)
    for channel in (0, 2):
        x = torch.stack([before[:, channel].flatten(), torch.ones(24)], 1)
        wanted = torch.linalg.lstsq(x, after[:, channel].flatten()).solution
        assert torch.allclose(torch.stack([scale[channel], shift[channel]]), wanted, atol=1e-5)
    assert scale[1] == 0
    assert shift[1] == pytest.approx(float(after[:, 1].mean()), abs=1e-6)


def test_grouped_and_dilated_convolutions_are_left_alone() -> None:
    assert can_merge(nn.Conv2d(4, 4, 3))
    others = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding="same")
    assert not any(map(can_merge, (*others, nn.Linear(4, 4))))
