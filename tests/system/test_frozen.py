"""Frozen parts of a model: nobody changes a bit of them, they cost less, and they are not sent back."""

from typing import Any

import pytest
import torch
from federations import federation
from torch import nn

import diastole
from diastole.models.cost import measure
from diastole.models.methods.registry import METHODS, build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network
from diastole.models.start import held
from diastole.models.state import tensor_bytes
from diastole.models.training import TrainConfig
from diastole.proto.payload import encode
from diastole.simulations.engines.stacked import program
from diastole.simulations.simulate import simulate

FROZEN = {"model": {"frozen": ["stages.0.*"]}}
FEW = {
    "tiers": {"large": {"devices": 20, "width": 1.0}, "small": {"devices": 20, "width": 0.25}},
    "rounds": {"count": 2, "cohort": 3},
    "data": {"proxy": 16},
}
ALL = {
    "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.25}},
    "rounds": {"count": 2},
    "data": {"proxy": 700},  # so that fewer are left for devices
}
OPTIONS = {
    "snnet": {"warmup": 0},
    "snnetv2": {"warmup": 0, "rank": 2},
    "ofa": {"pool": 2},
    "superfednas": {"pool": 2},
    "deps": {"pool": 2},
    "conv": {"epochs": 1, "weight_epochs": 1},
}
NORMAL = ("diastole", "width")


def run(method: str, **changes: Any) -> tuple[diastole.Result, set[str]]:
    """Return what two rounds come to, and the names of the global tensors that nobody may have changed."""
    made = federation(**FEW | FROZEN | {"method": method, "methods": {method: OPTIONS.get(method, {})}} | changes)
    chosen = made.run.method()
    start, still = made.run.begin(chosen), held(made.model, chosen)
    assert 0 < len(still) < len(start)
    result = simulate(made)
    assert result.rounds[-1].updates
    for name, tensor in result.state.items():
        same = torch.equal(tensor, start[name])
        assert same or name not in still, name
    assert any(not torch.equal(tensor, start[name]) for name, tensor in result.state.items())
    return result, set(still)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in NORMAL else [pytest.mark.slow])
        for name, row in METHODS.items()
        if not row.baseline
    ],
)
def test_nobody_changes_a_frozen_tensor(method: str) -> None:
    # The server trains on its proxy set too, and its optimiser moves wherever there is a moment.
    run(method, proxy={"epochs": 1}, server={"name": "fedadam", "learning_rate": 0.01})


def test_distillation_on_a_proxy_set_without_labels_leaves_them_too() -> None:
    run("diastole", proxy={"epochs": 1}, data={"proxy": 16, "proxy_labels": False})


@pytest.fixture(scope="module")
def expected() -> tuple[diastole.Result, set[str]]:
    return run("width", **ALL)


def bytes_of(result: diastole.Result) -> list[tuple[int, int]]:
    return [(closed.bytes_down, closed.bytes_up) for closed in result.rounds]


def test_the_bytes_that_travel_are_those_of_the_costs(expected: tuple[diastole.Result, set[str]]) -> None:
    result, still = expected
    costs = {size.spec: size.cost for size in result.sizes}
    by_label = {spec.label: cost for spec, cost in costs.items()}
    there = [account for account in result.accounts.values() if account.accepted]
    for account in there:
        cost = by_label[account.spec]
        # What is frozen is downloaded once, and kept.
        again = (account.accepted - 1) * (cost.down - cost.untrained)
        assert (account.bytes_down, account.bytes_up) == (cost.down + again, account.accepted * cost.up)
    assert max(account.accepted for account in there) == 2
    assert len({account.spec for account in there}) == 2
    for spec, cost in costs.items():
        assert cost.bytes_down - cost.bytes_up == tensor_bytes({name: result.parts[spec][name] for name in still}) > 0


@pytest.mark.slow
def test_processes_give_the_bits_of_the_loop(expected: tuple[diastole.Result, set[str]]) -> None:
    same, _ = run("width", engine="processes", workers=1, **ALL)
    assert all(torch.equal(same.state[name], tensor) for name, tensor in expected[0].state.items())
    assert bytes_of(same) == bytes_of(expected[0])


def test_devices_are_trained_together_as_apart(expected: tuple[diastole.Result, set[str]]) -> None:
    near, _ = run("width", engine="batched", **ALL)
    assert bytes_of(near) == bytes_of(expected[0])
    for name, tensor in expected[0].state.items():
        torch.testing.assert_close(near.state[name], tensor, rtol=1e-3, atol=1e-5)
    for spec in (size.spec for size in near.sizes):
        assert program(near.config, spec, torch.device("cpu")) is not None


def test_frozen_layers_cost_less() -> None:
    training = TrainConfig(batch_size=8)
    model = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16))
    still = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16), frozen=("stages.0.*",))
    whole, part = (measure(network(each), each.input_shape, training) for each in (model, still))
    module = network(still)
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert {name.split(".")[1] for name in trained if name.startswith("stages")} == {"1"}
    frozen = whole.bytes_up - part.bytes_up
    assert (part.bytes_down, part.up) == (whole.bytes_down, len(encode(trained)))
    assert frozen == 4 * sum(weight.numel() for weight in network(model).parameters()) - tensor_bytes(trained)
    # Neither gradients nor momenta of what is frozen, and no activation that only its gradients would read.
    assert part.memory <= whole.memory - 2 * frozen
    # The first layer's weights have no gradient, and no gradient goes through the second to the first.
    first, second = 8 * 9 * 64, 16 * 8 * 9 * 16
    assert whole.training_macs - part.training_macs == first + second
    assert part.forward_macs == whole.forward_macs


def test_parameters_that_need_no_gradient_are_frozen_in_a_module_of_ones_own() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net[1].requires_grad_(False)
    x, y = torch.randn(30, 12), torch.arange(30) % 3
    made = diastole.Experiment(
        model=net, train=(x, y), test=(x, y), rounds=1, devices=2, method="width", model__frozen=["3.bias"]
    )
    result = diastole.simulate(made)
    kept = {name for name, weight in net.named_parameters() if torch.equal(weight, result.state[name])}
    assert kept == {"1.weight", "1.bias", "3.bias"}
    module = build(result.config, result.whole)
    assert {name for name, weight in module.named_parameters() if not weight.requires_grad} == kept


def test_patterns_that_freeze_nothing_or_everything_are_refused() -> None:
    for patterns, refusal in ((["nowhere.*"], r"'nowhere\.\*' matches no tensor"), (["*"], "nothing is left to train")):
        with pytest.raises(diastole.DiastoleError, match=refusal) as caught:
            simulate(federation(**FEW, model={"frozen": patterns}))
        assert "\n" not in str(caught.value)
