"""Whole runs of SN-Net and SN-Netv2."""

from typing import Any

import pytest

from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("snnet", {"initialise": "devices"}),
        pytest.param("snnet", {"initialise": "proxy", "depths": [[1], [2]]}, marks=pytest.mark.slow),
        pytest.param("snnetv2", {"initialise": "proxy"}, marks=pytest.mark.slow),
    ],
    ids=["snnet", "snnet-unpaired", "snnetv2"],
)
def test_a_federation_trains_its_routes(method: str, options: dict[str, Any]) -> None:
    document = {
        "method": method,
        "data": {"proxy": 40},
        "partition": {"kind": "iid"},
        "model": {"name": "vit", "widths": [16], "blocks": [2], "group": 4, "patch": 4},
        "training": {"optimiser": "adam", "learning_rate": 0.03, "epochs": 2, "batch_size": 64},
        "rounds": {"count": 4, "evaluate_every": 4},
        "methods": {method: {"warmup": 0.5, **options}},
        "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 1, "width": 0.5}},
    }
    last = simulate(make_federation(Simulation.parse(document, "test"))).rounds[-1]
    assert last.updates == 3
    assert len(last.tier_accuracy) == 3
    # A guess is right once in ten times.
    assert last.tier_accuracy[f"{method} route 1" + (" rank 8" if method == "snnetv2" else "")] > 0.4
    assert min(last.tier_accuracy.values()) > 0.15
