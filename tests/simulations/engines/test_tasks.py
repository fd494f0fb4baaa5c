"""Every engine gives the results of the loop on every kind of task."""

import os
from pathlib import Path

import pytest
import torch
from everytask import KINDS

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.result import Result
from diastole.models.methods.widths.width import spec_of
from diastole.simulations.devices import make_federation
from diastole.simulations.engines.stacked import program
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

HELPERS = Path(__file__).parents[2] / "helpers"


def ran(task: str, **changes: object) -> Result:
    """Run one round of three devices."""
    kind = KINDS[task]
    model, train = kind.model, kind.examples(60)
    document = {
        "data": {"proxy": 16, "proxy_labels": changes.pop("labels", True)},
        "rounds": {"count": 1},
        "training": {"loss": kind.loss, "batch_size": 8},
        "metrics": [kind.metric],
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
        "model": {
            "name": model.name,
            "widths": model.widths,
            "blocks": model.blocks,
            "group": model.group,
            "factory": model.factory,
            "stages": model.stages,
            "vocabulary": model.vocabulary,
        },
    }
    dataset = Dataset(task, train, kind.examples(20, 1), model.classes)
    return simulate(make_federation(Simulation.parse(document | changes, "test"), dataset))


@pytest.mark.parametrize("task", [pytest.param(k, marks=[] if k == "value" else pytest.mark.slow) for k in KINDS])
def test_batched_devices_are_trained_as_in_the_loop(task: str) -> None:
    kind = KINDS[task]
    assert program(kind.model, spec_of(0.5), torch.device("cpu"), kind.training) is not None
    found, expected = ran(task, engine="batched"), ran(task)
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)
    scores = [each.rounds[-1].scores for each in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert kind.metric in scores[0]


@pytest.mark.parametrize(
    ("method", "task"),
    [
        pytest.param("diastole", "pixels", marks=pytest.mark.slow),
        pytest.param("depthfl", "tokens", marks=pytest.mark.slow),
        pytest.param("conv", "value", marks=pytest.mark.slow),
        pytest.param("width", "labels", marks=pytest.mark.slow),
    ],
)
def test_processes_give_the_bits_of_the_loop(method: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]))
    labels = method != "diastole"
    found = ran(task, method=method, labels=labels, engine="processes", workers=1)
    expected = ran(task, method=method, labels=labels)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
    assert found.rounds[-1].scores == expected.rounds[-1].scores
