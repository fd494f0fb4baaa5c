"""Tricks come to the same bits in a simulation, over gRPC, and when a run goes on in the middle of a schedule."""

import sys
from pathlib import Path

import pytest
import torch
from threaded import serve

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.server.events import Event, RoundClosed
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate, simulate_in
from diastole.simulations.simulation import Simulation


def experiment(rounds: int = 3, masked: bool = False, **training: object) -> Simulation:
    document = {
        "seed": 7,
        "methods": {"width": {"masked": masked}},
        "model": {"widths": [4, 8], "group": 2},
        "data": {"proxy": 20},
        "proxy": {"epochs": 1},
        "rounds": {"count": rounds},
        "training": {"balance": 0.5, "clip": 0.3, "schedule": "cosine"} | training,
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 1, "width": 0.5}},
    }
    return Simulation.parse(document, "test")


def test_grpc_and_loop_give_the_same_bits(tmp_path: Path) -> None:
    made = make_federation(experiment(2, masked=True))
    here, there = simulate(made), serve(made, tmp_path)
    for name, tensor in here.state.items():
        assert torch.equal(tensor, there.state[name]), name


class KilledError(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("step:0.5", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_in_the_middle_of_a_schedule_has_the_bits_of_one_that_never_stopped(
    schedule: str, tmp_path: Path
) -> None:
    settings = experiment(4, schedule=schedule)
    made = make_federation(settings)

    def kept() -> Checkpoint:
        return Checkpoint(tmp_path / "run.checkpoint", settings, made.run.dataset.digest)

    def die(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.round == 2:
            raise KilledError

    whole = simulate(made)
    with pytest.raises(KilledError):
        simulate(make_federation(settings), (die,), kept())
    found = simulate(make_federation(settings), (), kept())
    assert len(found.rounds) == 4
    assert all(torch.equal(found.state[name], tensor) for name, tensor in whole.state.items())


def test_a_run_with_a_schedule_cannot_be_given_more_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    simulate_in(tmp_path, make_federation(experiment(1)))
    with pytest.raises(ExperimentError, match=r"because the rounds with training.schedule cosine depend on") as caught:
        simulate_in(tmp_path, make_federation(experiment(2)))
    assert "\n" not in str(caught.value)
