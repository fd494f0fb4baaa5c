"""Scores of each device on the examples that it keeps for a test of its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diastole.client.training import train
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.personal import spread
from diastole.experiments.result import Result
from diastole.models.losses import Criterion
from diastole.models.scoring import evaluate
from diastole.models.seeds import derive_seed
from diastole.models.state import state_of
from diastole.models.task import Task
from diastole.models.training import Examples
from diastole.simulations.compare import compare
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

DOCUMENT: dict[str, Any] = {
    "data": {"personal": 0.25, "proxy": 20},
    "model": {"widths": [4, 8]},
    "tiers": {"large": {"devices": 2, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    "partition": {"kind": "quantity", "alpha": 0.5, "minimum": 1, "noise": 0.5},
    "rounds": {"count": 2},
}


def dataset() -> Dataset:
    """Return few examples of three classes that lie apart."""
    draws = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 3
    x = torch.randn(160, 1, 8, 8, generator=draws) + y[:, None, None, None]
    return Dataset("small", Examples(x[:140], y[:140]), Examples(x[140:], y[140:]), 3)


def federation(**changes: Any) -> Federation:
    return make_federation(Simulation.parse(DOCUMENT, "test").changed(**changes), dataset())


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(federation())


def test_what_a_device_keeps_is_its_own_and_nobody_trains_on_it() -> None:
    whole, parted = federation(data__personal=0.0), federation()
    for (name, device), other in zip(parted.devices.items(), whole.devices.values(), strict=True):
        assert device.index is not None
        assert other.index is not None
        assert other.kept is None
        kept = torch.empty(0, dtype=torch.int64) if device.kept is None else device.kept
        assert torch.equal(torch.cat([device.index, kept]).sort().values, other.index.sort().values)
        count = len(other.index)
        assert len(kept) == min(max(1, round(0.25 * count)), count - 1)
        assert device.profile.examples == len(device.index) >= 1
        assert len(device.kept_examples) == len(kept)
        assert torch.equal(device.kept_examples.x, parted.devices[name].kept_examples.x)


def test_scores_are_those_of_what_a_device_gets_and_of_what_it_makes_of_it(result: Result) -> None:
    made = federation()
    criterion = Criterion(made.simulation.training)
    assert list(result.personal) == [name for name, device in made.devices.items() if device.kept is not None]
    for name, found in result.personal.items():
        module, device = result.model(size=found.spec), made.devices[name]
        spec = next(size.spec for size in result.sizes if size.spec.label == found.spec)
        before = evaluate(module, device.kept_examples, criterion, ("accuracy",))
        task = Task("any", 3, name, spec, made.simulation.training, derive_seed(0, name, "personal"), 1.0)
        module.load_state_dict(train(made.model, task, state_of(module), device.examples).state)
        after = evaluate(module, device.kept_examples, criterion, ("accuracy",))
        assert found.examples == len(device.kept_examples)
        assert found.before == {**before.metrics, "loss": before.loss}
        assert found.after == {**after.metrics, "loss": after.loss}
    assert {found.spec for found in result.personal.values()} == {"width 1", "width 0.5"}


def test_the_last_pass_is_no_round_and_without_a_share_there_is_none(result: Result) -> None:
    assert [closed.updates for closed in result.rounds] == [4, 4]
    assert sum(row.updates for row in result.devices) == 8
    assert not simulate(federation(data__personal=0.0)).personal


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["batched", "processes"])
def test_engines_agree(result: Result, engine: str) -> None:
    other = simulate(federation(engine=engine))
    assert list(other.personal) == list(result.personal)
    for name, found in other.personal.items():
        mine = result.personal[name]
        for when in ("before", "after"):
            scores, expected = getattr(found, when), getattr(mine, when)
            assert scores["loss"] == pytest.approx(expected["loss"], rel=0 if engine == "processes" else 1e-3)


def test_report_and_comparison_have_their_spread(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())["personal"]
    values = [found.after["accuracy"] for found in result.personal.values()]
    assert report["after"]["mean"] == pytest.approx(np.mean(values))
    assert [report["after"][key] for key in ("low", "median", "high")] == list(np.percentile(values, (5, 50, 95)))
    assert {name: row["before"] for name, row in report["devices"].items()} == {
        name: found.before for name, found in result.personal.items()
    }
    assert (tmp_path / "report" / "personal.png").read_bytes().startswith(b"\x89PNG")
    found = compare(Simulation.parse(DOCUMENT, "test"), ["width"], [0], tmp_path / "runs", dataset=dataset())
    assert found.summary()["width"]["personal_after"].mean == spread(result.personal, "accuracy")["after"].mean


def test_devices_that_train_a_part_are_scored_with_all_of_it() -> None:
    found = simulate(federation(model__frozen=["stages.0.*"], rounds__count=1)).personal
    assert found
    assert any(each.before["loss"] != each.after["loss"] for each in found.values())
