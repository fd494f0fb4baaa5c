"""Networks with fewer layers."""

import pytest
import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError
from diastole.models.export.depth import Change, Depth
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network

RESNET = ModelConfig.of(name="resnet", input_shape=(3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 2))
BLOCKS = [f"stages.{stage}.{block}" for stage in range(2) for block in range(2)]


def count(module: nn.Module, x: Tensor) -> float:
    """Take the number of parameters, and one for every layer, for the time."""
    return sum(p.numel() for p in module.parameters()) + sum(1.0 for _ in module.modules())


@pytest.fixture(scope="module")
def depth() -> Depth:
    torch.manual_seed(0)
    return Depth(network(RESNET).eval(), BLOCKS, RESNET.drawn(12, torch.Generator().manual_seed(1)))


def test_blocks_that_keep_the_shape_can_be_taken_out(depth: Depth) -> None:
    assert [unit.loose for unit in depth.units] == [True, True, False, True]
    assert [unit.linked for unit in depth.units] == [(True,), (True,), (True, False), (True,)]
    x = RESNET.drawn(2, torch.Generator().manual_seed(2))
    before = depth.build({})(x)
    after = depth.build({1: Change(out=True)})
    assert "stages.0.1.conv1.weight" not in after.state_dict()
    assert after(x).shape == before.shape
    assert depth.loss({}) == pytest.approx(0, abs=1e-6)
    assert depth.loss({1: Change(out=True)}) > 1e-6


def test_two_convolutions_become_one(depth: Depth) -> None:
    made = depth.build({0: Change(parts=(((0, 2),),))})
    assert [tuple(p.shape) for name, p in made.named_parameters() if "stages.0.0" in name and p.ndim > 1] == [
        (8, 8, 5, 5)
    ]
    linear = depth.build({0: Change(parts=(((0, 1), (1, 2)),))})
    x = RESNET.drawn(2, torch.Generator().manual_seed(2))
    # Linear, whether merged or not, but for the border.
    assert torch.allclose(made(x), linear(x), atol=0.1)


def test_less_time_is_never_worth_more(depth: Depth) -> None:
    lost = []
    for share in (0.95, 0.7, 0.5):
        plan = depth.plan(share, count)
        assert plan.seconds <= share * plan.whole
        lost.append(depth.loss(plan.changes))
    assert lost == sorted(lost)
    assert plan.words.startswith("taken out: stages.")
    with pytest.raises(ModelError, match=r"depth: 1% of the time cannot be reached; at least \d+% remain"):
        depth.plan(0.01, count)


def test_a_chain_of_convolutions_is_looked_at_as_a_whole() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    # Biases that keep the activations from doing anything: merging is then exact.
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.bias, 10.0)  # type: ignore[arg-type]
    depth = Depth(net, [], torch.randn(20, 1, 6, 6))
    plan = depth.plan(0.8, count)
    assert plan.words == "made linear or merged: 0 + 2 + 4"
    assert depth.loss(plan.changes) == pytest.approx(0, abs=1e-4)
    assert sum(isinstance(layer, nn.Conv2d) for layer in depth.build(plan.changes).modules()) == 1


def test_a_network_without_anything_to_merge_is_refused() -> None:
    with pytest.raises(ModelError, match="no block keeps its shape, and no two convolutions"):
        Depth(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [], torch.randn(3, 1, 2, 2))
