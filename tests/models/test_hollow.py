"""Modules without values."""

import pytest
import torch
from contract import MODELS
from torch import nn

from diastole.models.hollow import hollow
from diastole.models.methods.registry import build


@pytest.mark.parametrize("name", ["cnn-2d", "resnet", "mobilenet", "vit", "transformer"])
def test_a_hollow_module_has_the_names_and_shapes_of_a_whole_one(name: str) -> None:
    whole = build(MODELS[name])
    drawn = torch.get_rng_state()
    with hollow():
        found = build(MODELS[name])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.is_meta for parameter in found.parameters())
    assert [(n, p.shape, p.dtype) for n, p in found.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in whole.named_parameters()
    ]


def test_what_has_values_is_filled_all_the_same() -> None:
    with hollow():
        x = torch.zeros(3, device="cpu")
        nn.init.constant_(x, 2.0)
        assert x.tolist() == [2.0] * 3
        assert nn.init.uniform_(tensor=torch.empty(2)).is_meta
        assert x.fill_(1.0).tolist() == [1.0] * 3
