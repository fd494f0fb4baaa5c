import pytest
import torch
from torch import nn

from diastole.models.methods.stitching.stitches import LowRankStitch, Stitch, Sums, merge, rows_of, solve, sums


def drawn(rows: int, inside: int, outside: int, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inside, generator=draws) + 1
    weight = torch.randn(inside, outside, generator=draws)
    return x, x @ weight + noise * torch.randn(rows, outside, generator=draws) - 2


def test_sums_are_those_of_plain_loops() -> None:
    x, y = drawn(9, 3, 2)
    found, wide = sums(x, y), [[*row, 1.0] for row in x.tolist()]
    for i in range(4):
        for j in range(4):
            assert found.gram[i, j].item() == pytest.approx(sum(row[i] * row[j] for row in wide))
        for j in range(2):
            terms = [row[i] * values[j] for row, values in zip(wide, y.tolist(), strict=True)]
            assert found.cross[i, j].item() == pytest.approx(sum(terms))
    assert found.rows == 9
    assert found.gram.dtype == found.cross.dtype == torch.float64


def test_sums_of_parts_solve_as_all_rows_together() -> None:
    x, y = drawn(60, 5, 4)
    parts = [sums(x[start:stop], y[start:stop]) for start, stop in ((0, 7), (7, 8), (8, 60))]
    before = parts[0].gram.clone()
    total = merge(parts)
    assert torch.equal(parts[0].gram, before)
    for found, expected in zip(solve(total), solve(sums(x, y)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-4, 1 / 60, 1e4])
def test_a_multiple_of_the_sums_has_the_same_solution(scale: float) -> None:
    total = sums(*drawn(60, 5, 4))
    for found, expected in zip(solve(Sums(scale * total.gram, scale * total.cross)), solve(total), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_an_affine_map_is_found_again() -> None:
    draws = torch.Generator().manual_seed(1)
    x, weight = torch.randn(50, 6, generator=draws), torch.randn(4, 6, generator=draws)
    bias = torch.randn(4, generator=draws)
    found = solve(sums(x, x @ weight.T + bias), ridge=0.0)
    torch.testing.assert_close(found[0], weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], bias, rtol=1e-5, atol=1e-5)
    identity = solve(sums(x, x))
    torch.testing.assert_close(identity[0], torch.eye(6), rtol=1e-5, atol=1e-5)


def test_the_solution_is_the_pseudo_inverses_and_no_neighbour_is_closer() -> None:
    x, y = drawn(40, 5, 3)
    weight, bias = solve(sums(x, y), ridge=0.0)
    wide = torch.cat([x, torch.ones(40, 1)], 1).double()
    expected = torch.linalg.pinv(wide) @ y.double()
    torch.testing.assert_close(torch.cat([weight.T, bias[None]]), expected.float(), rtol=1e-5, atol=1e-5)
    error = (x @ weight.T + bias - y).square().sum()
    for seed in range(5):
        nudge = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        assert (x @ (weight + nudge).T + bias - y).square().sum() > error


def test_a_channel_that_carries_nothing_gets_no_weight() -> None:
    x, y = drawn(40, 4, 3)
    x[:, 2] = 0
    weight, bias = solve(sums(x, y))
    assert weight[:, 2].abs().max() < 1e-9
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_a_stitch_of_maps_is_a_1x1_convolution_and_of_tokens_a_layer() -> None:
    torch.manual_seed(0)
    maps, tokens = Stitch(3, 5, 1), Stitch(3, 5, -1)
    conv = nn.Conv2d(3, 5, 1)
    conv.load_state_dict({"weight": maps.weight[:, :, None, None].detach(), "bias": maps.bias.detach()})
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(maps(x), conv(x))
    assert maps(x).is_contiguous()
    series = torch.randn(2, 7, 3)
    assert torch.equal(tokens(series), nn.functional.linear(series, tokens.weight, tokens.bias))
    assert rows_of(x, 1).tolist() == [x[n, :, i, j].tolist() for n in range(2) for i in range(4) for j in range(6)]
    assert rows_of(series, -1).tolist() == series.reshape(14, 3).tolist()


@pytest.mark.parametrize("channels", [1, -1])
def test_a_low_rank_stitch_starts_as_its_fixed_weight_and_learns_a_low_rank(channels: int) -> None:
    torch.manual_seed(0)
    stitch, x = LowRankStitch(6, 6, channels, rank=2), torch.randn(4, 6, 6)
    start = Stitch(6, 6, channels)
    start.load_state_dict({"weight": stitch.weight.detach(), "bias": stitch.bias.detach()})
    torch.testing.assert_close(stitch(x), start(x))
    assert stitch(x).is_contiguous()
    assert stitch.down.weight.abs().max() > 0
    stitch(x).square().sum().backward()
    trained = {name for name, weight in stitch.named_parameters() if weight.grad is not None}
    assert trained == {"bias", "down.weight", "up.weight"}
    nn.init.normal_(stitch.up.weight)
    change = stitch.up.weight @ stitch.down.weight / 2
    start.weight.data += change.detach()
    torch.testing.assert_close(stitch(x), start(x), rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(change) == 2
