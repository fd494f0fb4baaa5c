"""Attackers in a simulation: who they are, what they send, and that engines agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.family import initial_state
from diastole.models.task import Task, Update
from diastole.simulations.attack import Attack
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines.attacked import AttackedLink
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation
from tests.helpers.scripted import MODEL, TRAINING, ScriptedLink


def federation(attack: dict[str, Any] | None, **changes: Any) -> Federation:
    document: dict[str, Any] = {
        "data": {"proxy": 0},
        "rounds": {"count": 1},
        "training": {"batch_size": 256},
        "tiers": {"large": {"devices": 1, "width": 0.5}, "small": {"devices": 3, "width": 0.25}},
    }
    if attack is not None:
        document["attack"] = attack
    return make_federation(Simulation.parse(document | changes, "test"))


def test_names_and_counts_of_a_tier_say_who_attacks() -> None:
    tiers = {"large": ["device-00"], "small": ["device-01", "device-02", "device-03"]}
    named = Attack(kind="sign-flip", names=("device-0[02]",))
    assert named.among(tiers, 0) == {"device-00", "device-02"}
    counted = Attack(kind="sign-flip", tiers={"small": 2})
    assert counted.among(tiers, 0) == counted.among(tiers, 0) < set(tiers["small"])
    assert len({counted.among(tiers, seed) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"kind": "sign-flip"}, "names and tiers: one of them must say who attacks"),
        ({"kind": "sign-flip", "names": ["phone-*"]}, "'phone-*' is the name of no device; device-00 to device-03"),
        ({"kind": "sign-flip", "tiers": {"small": 4}}, "attack.tiers.small: 4 of 3 devices"),
        ({"kind": "sign-flip", "tiers": {"tiny": 1}}, "attack.tiers.tiny: 1 of 0 devices"),
        ({"kind": "bribe", "names": ["*"]}, "attack.kind"),
    ],
)
def test_an_attack_that_cannot_be_is_one_line(attack: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        federation(attack)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attack", "sends"),
    [
        (Attack(kind="sign-flip", names=("b",), factor=3.0), lambda sent, trained: sent - 3.0 * (trained - sent)),
        (Attack(kind="constant", names=("b",), value=2.0), lambda sent, trained: torch.full_like(sent, 2.0)),
        (Attack(kind="constant", names=("b",), examples=500), lambda sent, trained: torch.zeros_like(sent)),
    ],
)
def test_an_attacker_sends_what_the_experiment_says_and_the_others_what_they_trained(
    attack: Attack, sends: Callable[..., torch.Tensor]
) -> None:
    spec, state = spec_of(1.0), initial_state(MODEL, 0)
    tasks = [Task(name, 1, name, spec, TRAINING, 5) for name in "abc"]
    honest: list[Any] = list(ScriptedLink("abc").dispatch(tasks, {spec: state}, None))
    link = AttackedLink(ScriptedLink("abc"), MODEL, attack, {"b"})
    found: list[Any] = list(link.dispatch(tasks, {spec: state}, None))
    for before, after in zip(honest, found, strict=True):
        assert isinstance(after, Update)
        lies = after.device == "b"
        announced = attack.examples if lies and attack.examples else 12
        assert link.devices()[after.device].examples == after.examples == announced
        for name, tensor in before.state.items():
            assert torch.equal(after.state[name], sends(state[name], tensor) if lies else tensor), name


def test_flipped_labels_are_those_of_the_attacker_alone() -> None:
    honest, attacked = federation(None), federation({"kind": "label-flip", "names": ["device-02"]})
    assert attacked.attackers == {"device-02"}
    for name, device in honest.devices.items():
        found = attacked.devices[name]
        expected = 9 - device.examples.y if name == "device-02" else device.examples.y
        assert torch.equal(found.examples.y, expected)
        assert torch.equal(found.targets, expected)
        assert torch.equal(found.examples.x, device.examples.x)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["batched", "processes"])
@pytest.mark.parametrize("kind", ["sign-flip", "label-flip"])
def test_engines_agree_on_an_attack(kind: str, engine: str) -> None:
    attack = {"kind": kind, "tiers": {"small": 1}}
    expected = simulate(federation(attack)).state
    found = simulate(federation(attack, engine=engine, workers=1)).state
    honest = simulate(federation(None)).state
    assert not all(torch.equal(expected[name], tensor) for name, tensor in honest.items())
    for name, tensor in expected.items():
        if engine == "processes":
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_coordinator_of_real_devices_names_the_attack_as_unused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[attack]\nkind = "constant"\nnames = ["*"]\n')
    assert Experiment.load(tmp_path / "x.toml").unused == ("attack",)


def test_an_attacker_that_is_quarantined_is_suspended_and_everybody_is_told(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "width"\nrounds.count = 2\nadmission.offences = 1\ntraining.batch_size = 256\n'
        "tiers = { all = { devices = 4, width = 1.0 } }\n"
        'attack = { kind = "constant", value = 60000.0, names = ["device-02"] }\n'
    )
    code, out, err = run("simulate", str(file), "--out", str(tmp_path / "out"), "--figures", "")
    assert code == 0, err
    warning = "device-02: it is suspended until round 7: its last update was quarantined"
    assert f"round 1: {warning}" in out + err
    rounds = json.loads((tmp_path / "out" / "report.json").read_text())["rounds"]
    assert [each["warnings"] for each in rounds] == [[warning], []]
    assert [each["updates"] for each in rounds] == [3, 3]
