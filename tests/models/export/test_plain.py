"""Modules of ordinary layers answer as the trained ones do."""

import pytest
import torch
from torch import nn

from diastole.models.export.counting import forward_macs
from diastole.models.export.plain import Trainable, plain
from diastole.models.loading import fill
from diastole.models.methods.registry import METHODS, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.recalibrate import recalibrate
from diastole.models.training import Examples, TrainConfig

RESNET = ModelConfig.of(name="resnet", input_shape=(3, 8, 8), classes=4, widths=(8, 8), blocks=(1, 1))
CNN = ModelConfig.of(name="cnn", input_shape=(3, 8, 8), classes=4, widths=(8, 16))
KINDS = ("diastole", "fjord", "splitmix", "snnetv2", "fiarse", "depthfl", "scalefl", "nefl", "ofa")


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_module_answers_as_the_trained_one(name: str) -> None:
    assert name in METHODS
    draws = torch.Generator().manual_seed(0)
    model = RESNET if name == "nefl" else CNN
    method = make_method(name, model, [0.5, 1.0], TrainConfig(batch_size=8))
    proxy = Examples(model.drawn(8, draws), torch.arange(8) % 4)
    # Every tensor is moved: a step size of 1 or a change of low rank that is zero would show nothing.
    start = {n: t + 0.1 * torch.randn(t.shape, generator=draws) for n, t in method.initial(0).items()}
    method.prepare(start, Proxy(proxy, proxy), Moment())
    x = model.drawn(3, draws)
    for spec in dict.fromkeys([method.whole, *(size.spec for size in method.offers())][:3]):
        module = fill(method.module(spec), method.compress(spec)).eval()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        made = plain(module)
        assert not any(isinstance(part, Trainable) for part in made.modules())
        with torch.no_grad():
            assert torch.allclose(made(x), module(x), atol=1e-5)
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_batch_normalisations_are_folded_into_the_layer_before_them() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(96, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5)),
    )
    draws = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws)
    trained = recalibrate(net, torch.randn(32, 2, 6, 6, generator=draws))
    made = plain(trained)
    x = torch.randn(4, 2, 6, 6, generator=draws)
    assert torch.allclose(made(x), trained(x), atol=1e-4)
    # The last one follows an activation, so there is nothing that could take it in.
    assert [type(layer) for layer in made.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)] == [
        nn.BatchNorm1d
    ]


def test_a_layer_that_is_used_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layer(self.layer(x)))  # type: ignore[no-any-return]

    x = torch.randn(8, 4)
    trained = recalibrate(Twice(), x)
    assert torch.allclose(plain(trained)(x), trained(x), atol=1e-6)


def test_multiply_accumulates_are_those_of_convolutions_and_products() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    assert forward_macs(net, torch.zeros(1, 2, 4, 4)) == 16 * 9 * 2 * 3 + 48 * 5
