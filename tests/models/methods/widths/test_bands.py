"""Weights as the bands of them that are not zero, against plain loops."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from diastole.models.channels import Axis, Joined
from diastole.models.methods.widths.bands import Bands, bands_of

Axes = tuple[Axis | Joined | None, ...]
Sizes = Sequence[Mapping[str, int]]

CASES: dict[str, tuple[Axes, tuple[int, ...], Sizes]] = {
    "convolution": (
        (Axis("out"), Axis("in"), None),
        (5, 4, 3),
        [{"out": 2, "in": 1}, {"out": 2, "in": 3}, {"out": 5, "in": 4}],
    ),
    "transposed": (
        (Axis("in", swapped=True), Axis("out", swapped=True)),
        (4, 3),
        [{"out": 1, "in": 2}, {"out": 3, "in": 4}],
    ),
    "positions": ((Axis("out"), Axis("in", repeat=3)), (4, 6), [{"out": 1, "in": 1}, {"out": 4, "in": 2}]),
    "no-new-outputs": ((Axis("out"), Axis("in")), (2, 6), [{"out": 2, "in": 1}, {"out": 2, "in": 6}]),
    "joined": (
        (Axis("out"), Joined(((Axis("in"), 4), (None, 1), (Axis("out"), 3)))),
        (3, 8),
        [{"out": 1, "in": 2}, {"out": 2, "in": 2}, {"out": 3, "in": 4}],
    ),
    "joined-outputs": (
        (Joined(((Axis("out"), 3), (Axis("out"), 3))), Axis("in")),
        (6, 4),
        [{"out": 1, "in": 2}, {"out": 3, "in": 4}],
    ),
}


def channels(axis: Axis | Joined | None, length: int) -> list[tuple[str, int] | None]:
    """Return the channel of each entry of an axis."""
    found = list[tuple[str, int] | None]()
    for part, entries in axis.parts if isinstance(axis, Joined) else ((axis, length),):
        found += [(part.channels, entry // part.repeat) if part else None for entry in range(entries)]
    return found


def first_width(channel: tuple[str, int] | None, sizes: Sizes) -> int:
    """Return the number of the narrowest width that has a channel."""
    return 0 if channel is None else next(k for k, size in enumerate(sizes) if channel[1] < size[channel[0]])


def slow(weight: Tensor, axes: Axes, sizes: Sizes) -> Tensor:
    """Return a weight with zeros wherever an output is there at a width at which the input is not."""
    found, swapped = weight.clone(), isinstance(axes[0], Axis) and axes[0].swapped
    rows, columns = (channels(axis, length) for axis, length in zip(axes[:2], weight.shape, strict=False))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            output, given = (column, row) if swapped else (row, column)
            if first_width(output, sizes) < first_width(given, sizes):
                found[i, j] = 0
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_weight_of_bands_is_what_plain_loops_leave_of_it_and_so_are_gradients(name: str) -> None:
    axes, shape, sizes = CASES[name]
    draws = torch.Generator().manual_seed(0)
    weight, outer = torch.randn(2, *shape, generator=draws)
    bands: Bands = bands_of({"w": axes}, {"w": torch.Size(shape)}, sizes)["w"]
    parts = [part.requires_grad_() for part in bands.parts(weight)]
    whole = bands.whole(parts)
    assert torch.equal(whole, slow(weight, axes, sizes))
    assert sum(part.numel() for part in parts) == int((whole != 0).sum())
    gradients = torch.autograd.grad((whole * outer).sum(), parts)
    assert torch.equal(bands.whole(gradients), slow(outer, axes, sizes))


def of_devices(name: str, seed: int) -> tuple[Bands, list[Tensor], Tensor]:
    """Return bands, those of seven devices' weights, and a weight for each device."""
    axes, shape, sizes = CASES[name]
    draws = torch.Generator().manual_seed(seed)
    bands: Bands = bands_of({"w": axes}, {"w": torch.Size(shape)}, sizes)["w"]
    stacks = [torch.randn(7, *part.shape, generator=draws) for part in bands.parts(torch.zeros(shape))]
    return bands, stacks, torch.randn(7, *shape, generator=draws)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_many_devices_are_made_at_once(name: str) -> None:
    axes, _, sizes = CASES[name]
    bands, stacks, outer = of_devices(name, 1)
    one_by_one = torch.stack([bands.whole([stack[k] for stack in stacks]) for k in range(7)])
    assert torch.equal(torch.vmap(lambda *parts: bands.whole(parts))(*stacks), one_by_one)
    # Bands that all devices share are not stacked.
    shared = torch.vmap(lambda *rest: bands.whole([stacks[0][0], *rest]), randomness="error")
    if len(stacks) > 1:
        expected = [bands.whole([stacks[0][0], *(stack[k] for stack in stacks[1:])]) for k in range(7)]
        assert torch.equal(shared(*stacks[1:]), torch.stack(expected))

    leaves = [stack.requires_grad_() for stack in stacks]
    gradients = torch.autograd.grad((torch.vmap(lambda *parts: bands.whole(parts))(*leaves) * outer).sum(), leaves)
    for k in range(7):
        assert torch.equal(bands.whole([part[k] for part in gradients]), slow(outer[k], axes, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_taken_inside_of_a_vmap_too(name: str) -> None:
    axes, _, sizes = CASES[name]
    bands, stacks, outer = of_devices(name, 2)

    def gradient(own: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda each: (bands.whole(each) * own).sum())(parts)

    gradients = torch.vmap(gradient)(outer, *stacks)
    for k in range(7):
        assert torch.equal(bands.whole([part[k] for part in gradients]), slow(outer[k], axes, sizes))


def test_a_weight_without_zeros_has_no_bands() -> None:
    sizes = [{"out": 1, "in": 2}, {"out": 3, "in": 2}]
    shapes = {"w": torch.Size((3, 2)), "b": torch.Size((3,)), "first": torch.Size((3, 2))}
    layout: dict[str, Axes] = {"w": (Axis("out"), Axis("in")), "b": (Axis("out"),), "first": (Axis("out"), None)}
    assert not bands_of(layout, shapes, sizes)
