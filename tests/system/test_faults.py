"""The fault matrix: whatever half of a fleet does, the model has the bits of the honest half's own."""

import threading
from pathlib import Path

import torch
from faults import HONEST, ROLES, Device, document, fleet, reference

from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.models.state import State
from diastole.server.events import Event, RoundClosed, UpdateQuarantined
from diastole.v1 import device_pb2 as pb

ACCEPTED = pb.UploadReply.OUTCOME_ACCEPTED


def the_same(found: State, expected: State) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def check_fleet(devices: list[Device]) -> None:
    """Check what the devices were told, and that the network was cut while something moved on it."""
    for device in devices:
        device.join(20)
    for device in devices:
        if device.role in HONEST:
            assert device.error is None
            assert device.answers[0] == ACCEPTED
        if device.role == "slow":
            assert ACCEPTED not in device.answers
        if device.role == "cut":
            assert sorted(device.network.cuts) == ["down", "up"]


def test_a_round_with_every_fault_closes_at_its_deadline_with_the_honest_bits(tmp_path: Path) -> None:
    described, over, events = document(1, 3.0), threading.Event(), list[Event]()
    with Serving(
        make_run(Experiment.parse(described, "test")), "127.0.0.1:0", tmp_path, observers=(events.append,), figures=()
    ) as serving:
        devices = list(fleet(serving.port, 1, over))
        result = serving.wait(60)
        over.set()
    check_fleet(devices)
    (closed,) = [event for event in events if isinstance(event, RoundClosed)]
    assert closed.updates == sum(role in HONEST for role in ROLES)
    assert 3.0 <= closed.seconds < 10
    faulty = {event.device.split("-")[0] for event in events if isinstance(event, UpdateQuarantined)}
    assert faulty == {"nan", "shape"}
    assert the_same(result.state, reference(described))
