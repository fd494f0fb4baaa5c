"""One model in parts, each of which knows some classes."""

import pytest
import torch
from torch import nn

from diastole.models.errors import ModelError
from diastole.models.export.split import Chosen, fusion, groups, only
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network

CNN = ModelConfig.of(name="cnn", input_shape=(1, 8, 8), classes=6, widths=(4, 8))


def test_every_class_is_known_to_one_part() -> None:
    assert groups(10, 3) == [range(3), range(3, 6), range(6, 10)]
    for parts in (1, 6, 0, -2):
        with pytest.raises(ModelError, match=f"{parts} parts of 10 classes: 2 to 5 parts"):
            groups(10, parts)


@torch.no_grad()
def test_a_part_has_the_outputs_of_its_classes_alone() -> None:
    net, x = network(CNN).eval(), torch.randn(5, 1, 8, 8)
    part = only(net, range(2, 5), 6, x)
    assert torch.allclose(part(x), net(x)[:, 2:5], atol=1e-6)
    assert part.classifier.out_features == 3
    assert net.classifier.out_features == 6


@torch.no_grad()
def test_a_network_that_ends_otherwise_is_cut_behind_its_end() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Softmax(1)).eval(), torch.randn(5, 1, 8, 8)
    part = only(net, range(3), 6, x)
    assert isinstance(part, Chosen)
    assert torch.allclose(part(x), net(x)[:, :3])


@torch.no_grad()
@pytest.mark.parametrize("count", [8, 60])
def test_the_answer_of_all_parts_is_that_of_the_network(count: int) -> None:
    net, x = network(CNN).eval(), torch.randn(count, 1, 8, 8)
    parts = [only(net, classes, 6, x) for classes in groups(6, 3)]
    # Parts that are out of scale, each output by itself.
    parts = [nn.Sequential(part, nn.Linear(2, 2)) for part in parts]
    for part in parts:
        part[1].weight.copy_(torch.diag(torch.rand(2) + 0.5))
    weight, bias = fusion(parts, x, net(x))
    assert torch.allclose(torch.cat([part(x) for part in parts], 1) @ weight.T + bias, net(x), atol=1e-2)
