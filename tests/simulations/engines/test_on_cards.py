"""Every method on a card: the same federation as on the CPU, and nothing crosses but numbers for the report.

The stand-in card of `tests/helpers/card.py` computes as the CPU does, so the loop engine's bits are those of the CPU.
"""

from functools import cache
from typing import Any

import card
import pytest
import torch
from torch import Tensor

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.result import Result
from diastole.models.methods.registry import METHODS
from diastole.models.seeds import generator
from diastole.models.training import Examples
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

USUAL = ("diastole", "conv", "fiarse")
NAMES = [
    pytest.param(name, marks=() if name in USUAL else pytest.mark.slow)
    for name, row in METHODS.items()
    if not row.each_width
]
OPTIONS: dict[str, dict[str, Any]] = {"conv": {"epochs": 1, "weight_epochs": 1}}


@cache
def data() -> Dataset:
    draws = generator("cards")

    def examples(count: int) -> Examples:
        return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.randint(4, (count,), generator=draws))

    return Dataset("cards", examples(46), examples(12), 4)


def ran(method: str, engine: str, device: str, **tables: Any) -> Result:
    """Run two rounds of three devices, the server's own training included."""
    document: dict[str, Any] = {
        "method": method,
        "engine": engine,
        "device": device,
        "data": {"proxy": 16},
        "model": {"name": "cnn", "widths": [4, 8], "group": 2},
        "partition": {"kind": "quantity", "alpha": 1.0, "minimum": 2},
        "training": {"batch_size": 8, "learning_rate": 0.02, "momentum": 0.5},
        "rounds": {"count": 2},
        "proxy": {"epochs": 1},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
        "limits": (),
        "metrics": ("accuracy", "f1"),
    } | tables
    if method in OPTIONS:
        document["methods"] = {method: OPTIONS[method]}
    return simulate(make_federation(Simulation.parse(document, method), data()))


def flat(result: Result) -> Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(result.state.items())])


def near(one: Result, other: Result) -> bool:
    return torch.allclose(flat(one), flat(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize("method", NAMES)
def test_every_method_on_a_card_comes_to_what_it_does_on_the_cpu(method: str, where: str) -> None:
    expected = ran(method, "loop", "cpu")
    with card.watched(where):
        found = ran(method, "loop", where)
    assert near(found, expected)
    if where == card.NAME:
        assert torch.equal(flat(found), flat(expected))
        assert [(each.scores, each.tier_scores) for each in found.rounds] == [
            (each.scores, each.tier_scores) for each in expected.rounds
        ]


@pytest.mark.parametrize("where", card.cards())
def test_a_model_that_draws_trains_on_the_card(where: str) -> None:
    model = {"name": "simple-cnn", "widths": [4, 8, 8], "group": 2}
    expected = ran("fedavg", "batched", "cpu", model=model, proxy={"epochs": 0})
    with card.watched(where):
        found = ran("fedavg", "batched", where, model=model, proxy={"epochs": 0})
    # Its dropout draws other masks on a card.
    assert 0 < (flat(found) - flat(expected)).abs().max() < 0.1


@pytest.mark.parametrize("where", card.cards())
@pytest.mark.parametrize("method", ["width", "diastole"])
def test_the_batched_engine_trains_stacked_and_other_sub_models_on_the_card(method: str, where: str) -> None:
    expected = ran(method, "batched", "cpu")
    with card.watched(where):
        found = ran(method, "batched", where)
    assert near(found, expected)
