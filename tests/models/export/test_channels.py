"""Fewer channels by LASSO and least squares."""

import pytest
import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError
from diastole.models.export.channels import pairs, pruned, traced
from diastole.models.export.lasso import chosen, lasso, solved
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network


def slow_lasso(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Return the factors by proximal gradient descent."""
    factors, step = torch.zeros_like(cross), 1 / torch.linalg.matrix_norm(gram, 2)
    for _ in range(3000):
        moved = factors - step * (gram @ factors - cross)
        factors = moved.sign() * (moved.abs() - step * penalty).clamp(min=0)
    return factors


@pytest.mark.parametrize("seed", range(3))
def test_lasso_finds_the_minimum(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    data = torch.randn(30, 6, generator=draws, dtype=torch.float64)
    gram, cross = data.T @ data, data.T @ torch.randn(30, generator=draws, dtype=torch.float64)
    penalty = 0.4 * float(cross.abs().max())
    found = lasso(gram, cross, penalty, torch.ones(6, dtype=torch.float64))
    assert torch.allclose(found, slow_lasso(gram, cross, penalty), atol=1e-6)
    assert 0 < int((found == 0).sum()) < 6


def test_the_units_that_explain_the_outputs_are_kept() -> None:
    rows, weight = torch.randn(200, 8, 3), torch.randn(5, 8, 3)
    weight[:, [0, 3, 4, 7]] *= 0.01
    wanted = torch.einsum("ruv,ouv->ro", rows, weight)
    assert chosen(rows, weight, wanted, 4).tolist() == [1, 2, 5, 6]
    assert len(chosen(rows, weight, wanted, 7)) == 7


def test_weights_are_those_of_least_squares() -> None:
    rows, wanted = torch.randn(50, 4), torch.randn(50, 3)
    weight, bias = solved(rows, wanted)
    reference = torch.linalg.lstsq(torch.cat([rows, torch.ones(50, 1)], 1), wanted).solution
    assert torch.allclose(torch.cat([weight.T, bias[None]]), reference, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"name": "cnn", "widths": (8, 16)}, 2),
        ({"name": "simple-cnn", "widths": (8, 8, 16)}, 2),
        ({"name": "resnet", "widths": (8, 16), "blocks": (1, 2)}, 3),
    ],
)
def test_channels_that_carry_nothing_go_without_a_trace(fields: dict[str, object], count: int) -> None:
    model = ModelConfig.of(input_shape=(3, 8, 8), classes=4, **fields)
    torch.manual_seed(0)
    net = network(model).eval()
    graph = traced(net)
    found = pairs(graph)
    assert len(found) == count
    with torch.no_grad():
        for pair in found:
            # Every second unit is read by nobody.
            weight: Tensor = net.get_submodule(pair.reader).weight  # type: ignore[assignment]
            channels = len(net.get_submodule(pair.writer).weight)  # type: ignore[arg-type]
            each = weight.view(len(weight), channels // pair.group, -1)
            each[:, ::2] = 0
    x = model.drawn(40, torch.Generator().manual_seed(1))
    made, gone = pruned(net, x, 0.5)
    assert gone > 0
    with torch.no_grad():
        assert torch.allclose(made(x), net(x), atol=2e-2)
    assert sum(p.numel() for p in made.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())


def test_a_transformer_is_thinned_block_by_block() -> None:
    model = ModelConfig.of(name="vit", input_shape=(3, 8, 8), classes=4, widths=(16,), blocks=(2,))
    torch.manual_seed(0)
    net, x = network(model).eval(), model.drawn(40, torch.Generator().manual_seed(1))
    made, gone = pruned(net, x, 0.5, ["stages.0.0", "stages.0.1"])
    assert gone == 2 * 32
    with torch.no_grad():
        assert made(x).shape == net(x).shape
        assert (made(x) - net(x)).norm() < 0.5 * (net(x) - net(x).mean(0)).norm()


def test_a_network_without_pairs_is_refused() -> None:
    with pytest.raises(ModelError, match="no two layers have channels of their own"):
        pruned(nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 4), 0.5)
