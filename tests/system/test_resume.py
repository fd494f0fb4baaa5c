"""A simulation that is killed goes on as if it had not been."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from waiting import until

from diastole.experiments import checkpoint as module
from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.models.networks.custom import own as custom
from diastole.server.events import Event, RoundClosed, RunFinished
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation


def experiment(**changes: Any) -> Simulation:
    document = {
        "seed": 5,
        "data": {"proxy": 60},
        "rounds": {"count": 5},
        "proxy": {"epochs": 1},
        "methods": {"conv": {"epochs": 2, "weight_epochs": 2}},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.5}},
    }
    return Simulation.parse(document | changes, "test")


# So few that nobody is online when the third round begins: it waits, and must not wait twice.
PHONES = {"preset": "phones", "pause": 14400.0}


class KilledError(BaseException):
    """Stands for the end of a process; the real one is killed below."""


def checkpoint(path: Path, settings: Simulation) -> Checkpoint:
    return Checkpoint(path, settings, make_federation(settings).run.dataset.digest)


def die_after(number: int) -> Any:
    def observe(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.round == number:
            raise KilledError

    return observe


def half() -> nn.Module:
    """Return a network in bfloat16, of whose global model the coordinator keeps what rounding takes away."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()
    return nn.Sequential(Cast(), *first, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10)).bfloat16()


class Cast(nn.Module):
    """Comes to bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


@pytest.mark.slow
def test_what_rounding_has_taken_from_a_model_in_16_bits_outlives_the_process(tmp_path: Path) -> None:
    settings = experiment(model={"name": "custom", "factory": custom.register(half())}, method="diastole")
    undisturbed, path = simulate(make_federation(settings)), tmp_path / "run.checkpoint"
    with pytest.raises(KilledError):
        simulate(make_federation(settings), (die_after(2),), checkpoint(path, settings))
    resumed = simulate(make_federation(settings), (), checkpoint(path, settings))
    for name, tensor in undisturbed.state.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, resumed.state[name])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"method": "width"}, marks=pytest.mark.slow),
        pytest.param({"method": "conv"}, marks=pytest.mark.slow),
        {
            "method": "width",
            "server": {"name": "fedadam", "learning_rate": 0.01},
            "model": {"frozen": ["stages.0.*"]},
        },
        pytest.param({"method": "conv", "server": {"name": "fedavgm", "learning_rate": 0.5}}, marks=pytest.mark.slow),
        pytest.param({"method": "width", "engine": "processes", "workers": 1}, marks=pytest.mark.slow),
        pytest.param({"method": "diastole", "server": {"name": "fedavgm", "beta1": 0.5}}, marks=pytest.mark.slow),
    ],
)
def test_the_bits_are_those_of_an_undisturbed_run(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = experiment(**changes, rounds={"count": 4})
    # All engines give the same bits.
    undisturbed = simulate(make_federation(settings.changed(engine="loop")))
    path = tmp_path / "run.checkpoint"
    with pytest.raises(KilledError):
        simulate(make_federation(settings), (die_after(2),), checkpoint(path, settings))
    assert path.exists()
    events: list[Event] = []
    resumed = simulate(make_federation(settings), (events.append,), checkpoint(path, settings))
    assert [event.round for event in events if isinstance(event, RoundClosed)] == [3, 4]
    assert all(torch.equal(resumed.state[name], undisturbed.state[name]) for name in undisturbed.state)
    assert [r.accuracy for r in resumed.rounds] == [r.accuracy for r in undisturbed.rounds]
    assert [r.bytes_up for r in resumed.rounds] == [r.bytes_up for r in undisturbed.rounds]
    spent = [{n: (a.accepted, a.macs, a.bytes_down) for n, a in o.accounts.items()} for o in (resumed, undisturbed)]
    assert spent[0] == spent[1]
    # It is the caller's to remove, who has yet to write what the run came to.
    assert path.exists()


def die_at_the_end(event: Event) -> None:
    if isinstance(event, RunFinished):
        raise KilledError


@pytest.mark.parametrize(
    "die",
    [
        pytest.param(die_after(1), id="1", marks=pytest.mark.slow),
        pytest.param(die_after(3), id="3"),
        pytest.param(die_at_the_end, id="end", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"population": PHONES},
        {"population": {"preset": "mixed", "deadline": 3.0, "pause": 1800.0}, "method": "conv"},
        {"population": {"preset": "wearables"}, "server": {"name": "fedadam"}, "rounds": {"count": 5, "cohort": 2}},
    ],
    ids=["phones", "mixed", "wearables"],
)
@pytest.mark.slow
def test_so_are_the_seconds_and_joules_of_a_population(changes: dict[str, Any], die: Any, tmp_path: Path) -> None:
    settings = experiment(**changes)
    undisturbed = simulate(make_federation(settings))
    assert undisturbed.field is not None
    path = tmp_path / "run.checkpoint"
    with pytest.raises(KilledError):
        simulate(make_federation(settings), (die,), checkpoint(path, settings))
    resumed = simulate(make_federation(settings), (), checkpoint(path, settings))
    assert all(torch.equal(resumed.state[name], undisturbed.state[name]) for name in undisturbed.state)
    assert resumed.rounds == undisturbed.rounds
    # What a processor took is measured, and never the same twice.
    found, expected = ({n: replace(a, processor=0.0) for n, a in o.accounts.items()} for o in (resumed, undisturbed))
    assert found == expected
    assert resumed.field == undisturbed.field
    assert list(resumed.field.devices) == list(undisturbed.field.devices)


@pytest.mark.slow
def test_a_population_waits_for_a_device_that_fits_within_its_first_round() -> None:
    seconds = [r.seconds - 14400.0 for r in simulate(make_federation(experiment(population=PHONES))).rounds]
    # The one that is online at first has too little memory for every size.
    assert seconds[1] < 3600 < seconds[0]


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path: Path) -> None:
    def few(**changes: Any) -> Simulation:
        return experiment(rounds={"count": 3}, **changes)

    path = tmp_path / "run.checkpoint"
    with pytest.raises(KilledError):
        simulate(make_federation(few()), (die_after(2),), checkpoint(path, few()))
    other = few(seed=6)
    with pytest.raises(ExperimentError, match=r"run there was of another experiment; start afresh \(--fresh\)"):
        simulate(make_federation(other), (), checkpoint(path, other))
    checkpoint(path, other).remove()
    assert len(simulate(make_federation(other), (), checkpoint(path, other)).rounds) == 3


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["", "mixed"])
def test_a_process_that_is_killed_goes_on(
    preset: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["simulate", str(root / "simulations/examples/digits.toml"), "--track", "csv", "--json"]
    command += ["--set", "method=width", "--set", "rounds.count=12"]
    command += [part for tier in ("medium", "small") for part in ("--set", f"tiers.{tier}.devices=1")]
    command += ["--set", f"population.preset={preset}", "--set", "population.pause=1800", "--out"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    first = [sys.executable, "-m", "diastole.cli.main", *command, str(out)]
    process = subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until((out / "run.checkpoint").exists, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    code, text, err = run(*command, out)
    assert (code, "going on after round" in err) == (0, True)
    report = json.loads(text)
    undisturbed = json.loads(run(*command, whole)[1])
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert len(report["rounds"]) == 12
    assert (report["field"] is not None) == bool(preset)
    assert report["field"] == undisturbed["field"]
    for closed in (*report["rounds"], *undisturbed["rounds"]):
        # Real time, which no two runs share.
        del closed["wall_seconds"], closed["server_seconds"]
    assert not preset or report["rounds"] == undisturbed["rounds"]
    rounds = [line.split(",")[0] for line in (out / "rounds.csv").read_text().splitlines()]
    assert rounds == ["round", *map(str, range(1, 13))]
    assert not (out / "run.checkpoint").exists()


@pytest.mark.slow
def test_rounds_that_are_left_out_are_run_again_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, path = experiment(method="width", rounds={"count": 4}), tmp_path / "run.checkpoint"
    made = make_federation(settings)

    def kept() -> Checkpoint:
        return Checkpoint(path, settings, made.run.dataset.digest, sparing=True)

    expected = simulate(make_federation(settings))
    # The first round is written, and takes all the time that there is for writing.
    monkeypatch.setattr(module, "FREE", 0.0)
    monkeypatch.setattr(module, "SHARE", 0.0)
    with pytest.raises(KilledError):
        simulate(make_federation(settings), (die_after(3),), kept())
    found = kept().check()
    assert found is not None
    assert len(found.closed) == 1
    resumed = simulate(make_federation(settings), checkpoint=kept())
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in expected.state.items())
    last = kept().check()
    assert last is not None
    assert len(last.closed) == 4
