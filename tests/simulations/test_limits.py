"""Budgets of tiers, through whole rounds of every method."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.models.methods.registry import METHODS
from diastole.models.methods.widths.width import width_cost
from diastole.simulations.devices import SLACK, Federation, make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

# DepthFL, InclusiveFL and FIARSE have no size that needs as little memory as narrow networks do, and with a network
# this small an exit of ScaleFL has more bytes than the narrowest one.
SERVED = {"depthfl": {"a"}, "inclusivefl": {"a"}, "fiarse": {"a"}, "scalefl": {"a", "b"}}
# The pools of architectures and routes that they would measure are none of this test's business.
OPTIONS = {
    "ofa": {"pool": 4},
    "superfednas": {"pool": 4},
    "deps": {"pool": 4},
    "conv": {"epochs": 1, "weight_epochs": 1},
}


@cache
def digits() -> Dataset:
    """Few of them: what fits does not depend on how many a device has."""
    full = load("digits", None, Reading())
    train, test = full.train.subset(torch.arange(240)), full.test.subset(torch.arange(40))
    return replace(full, train=train, test=test)


def federation(method: str, limits: list[str]) -> Federation:
    document = {
        "method": method,
        "limits": limits,
        "rounds": {"count": 1},
        "methods": {name: OPTIONS[name] for name in OPTIONS if name == method},
        "tiers": {name: {"devices": 1, "width": width} for name, width in (("a", 1.0), ("b", 0.5), ("c", 0.25))},
    }
    return make_federation(Simulation.parse(document, "test"), digits())


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.baseline])
def test_no_device_is_given_more_than_its_tier_may_spend(method: str) -> None:
    made = federation(method, ["macs", "memory", "bytes"])
    outcome = simulate(made)
    costs = {size.spec.label: size.cost for size in outcome.sizes}
    served = set()
    for name, account in outcome.accounts.items():
        if not account.spec:
            continue
        tier = made.devices[name].profile.tier
        served.add(tier)
        spent = costs[account.spec]
        plain = width_cost(made.model, made.simulation.tiers[tier].width, made.simulation.training)
        assert spent.training_macs <= SLACK * plain.training_macs
        assert spent.memory <= SLACK * plain.memory
        assert max(spent.bytes_down, spent.bytes_up) <= SLACK * plain.bytes_down
    assert served == SERVED.get(method, {"a", "b", "c"})


@pytest.mark.parametrize(
    ("limits", "served"), [(["bytes"], {"a", "b", "c"}), (["memory"], {"a"}), ([], {"a", "b", "c"})]
)
def test_only_the_limits_that_are_asked_for_count(limits: list[str], served: set[str]) -> None:
    made = federation("fiarse", limits)
    outcome = simulate(made)
    found = {made.devices[name].profile.tier for name, account in outcome.accounts.items() if account.spec}
    assert found == served


def test_a_population_has_the_slack_of_tiers() -> None:
    document = {
        "method": "diastole",
        "tiers": {"a": {"devices": 2, "width": 1.0}, "b": {"devices": 2, "width": 0.5}},
        "population": {"preset": "compute-limited"},
        "rounds": {"count": 1},
    }
    outcome = simulate(make_federation(Simulation.parse(document, "test"), digits()))
    assert {account.spec for account in outcome.accounts.values() if account.spec} == {"diastole 1"}
