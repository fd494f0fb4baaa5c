"""Devices that train by every lever give the same bits in a simulation and over gRPC, and move the same bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federations import federation
from threaded import serve

from diastole.models.levers import KNOWN, Levers
from diastole.models.methods.registry import cost_of
from diastole.models.ways import cost_by
from diastole.simulations.devices import Federation
from diastole.simulations.simulate import simulate

PART = "last-stages:1"
LEVERS = (
    Levers(),
    Levers(recompute=True),
    Levers(micro_batch=2),
    Levers(recompute=True, micro_batch=1, half_state=True),
    Levers(micro_batch=1, half_state=True, part=PART),
)
TRAINING = {
    "batch_size": 16,
    "levers": ["recompute", "micro-batch", "half-state"],
    "parts": [PART],
    "parts_first": True,
}


def aided(**changes: object) -> Federation:
    """Five devices that are given the same size: each has just the memory for it by levers of its own."""
    made = federation(
        model={"name": "cnn", "widths": [8, 16]},
        data={"proxy": 700},
        training=TRAINING,
        tiers={"large": {"devices": 5, "width": 1.0}, "none": {"devices": 0, "width": 0.5}},
        **changes,
    )
    # As agents are told it, so that they find measured what they would measure while others in this process train.
    training, devices = made.simulation.training.told, dict(made.devices)
    run, spec = made.run, made.run.method().offers()[-1].spec
    planner = run.planner(run.method().offers(), None)
    for (name, device), levers in zip(made.devices.items(), LEVERS, strict=True):
        memory = cost_by(made.model, spec, training, levers).memory
        devices[name] = replace(device, profile=replace(device.profile, memory=memory))
        size = planner.fits(name, devices[name].profile)[-1]
        assert (size.spec, planner.levers(name, devices[name].profile, size)) == (spec, levers)
    return replace(made, devices=devices)


@pytest.mark.slow
@pytest.mark.parametrize(("up", "down"), [("exact", "exact"), ("top-k:0.1", "delta:int8")])
def test_grpc_and_loop_give_the_same_bits(up: str, down: str, tmp_path: Path) -> None:
    assert {each for levers in LEVERS for each in levers.used} == set(KNOWN)
    made = aided(codecs={"up": up, "down": down})
    here, there = simulate(made), serve(made, tmp_path)
    for name, tensor in here.state.items():
        assert torch.equal(tensor, there.state[name]), name
    for one, other in zip(here.rounds, there.rounds, strict=True):
        assert one.updates == other.updates == len(LEVERS)
        assert (one.bytes_down, one.bytes_up, one.macs) == (other.bytes_down, other.bytes_up, other.macs)
    if up == "exact":
        # All are sent the same, and one sends back a part.
        spec = made.run.method().offers()[-1].spec
        whole, part = (cost_of(made.model, spec, made.simulation.training, part=each) for each in ("", PART))
        assert {closed.bytes_down for closed in here.rounds} == {5 * whole.down}
        assert {closed.bytes_up for closed in here.rounds} == {4 * whole.up + part.up}


@pytest.mark.slow
def test_processes_give_the_bits_of_the_loop_and_the_batched_engine_comes_close() -> None:
    here, same, near = (simulate(aided(engine=each, workers=1)) for each in ("loop", "processes", "batched"))
    for name, tensor in here.state.items():
        assert torch.equal(tensor, same.state[name]), name
        torch.testing.assert_close(near.state[name], tensor, rtol=1e-3, atol=1e-4)
    assert [closed.bytes_up for closed in here.rounds] == [closed.bytes_up for closed in same.rounds]
    assert [closed.bytes_up for closed in here.rounds] == [closed.bytes_up for closed in near.rounds]
