"""The fault matrix: whatever half of a fleet does, the model has the bits of the honest half's own."""

import json
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from faults import HONEST, Device, coordinate, document, fleet, honest, reference, roles
from killing import FORKS

from diastole.client.model_file import ModelFile
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.models.state import State
from diastole.server.events import Event, RoundClosed, UpdateAccepted, UpdateQuarantined
from diastole.server.observe.tally import Tally
from diastole.server.wire import link as links
from diastole.v1 import device_pb2 as pb

ACCEPTED = pb.UploadReply.OUTCOME_ACCEPTED
DEADLINE = 600.0
FAULTY = {"nan", "shape"}


def the_same(found: State, expected: State) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def check_fleet(devices: list[Device], rounds: int) -> None:
    """Check what the devices were told, and that the network was cut while something moved on it."""
    for device in devices:
        device.join(60)
    for device in devices:
        if device.role in HONEST:
            assert device.error is None
            assert device.answers.count(ACCEPTED) >= rounds
        if device.role == "slow":
            assert ACCEPTED not in device.answers
        if device.role == "cut":
            assert sorted(device.network.cuts) == ["down", "up"]


@pytest.mark.parametrize("ends", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_round_with_every_fault_closes_at_its_deadline_with_the_honest_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """In one case the coordinator ends in the middle of the round too, and the next one goes on with it."""
    described, over, some = document(1, DEADLINE, 20), threading.Event(), threading.Event()
    events, run = list[Event](), make_run(Experiment.parse(described, "test"))
    tally, coming, all_ = Tally(), {*honest(20), *(f"{role}-" for role in FAULTY)}, threading.Event()
    passed = [0.0]
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, UpdateAccepted):
            some.set()
            coming.discard(event.device)
        if isinstance(event, UpdateQuarantined):
            coming.discard(event.device.rstrip("0123456789"))
        if not coming:
            all_.set()

    with ExitStack() as stack:
        serving = stack.enter_context(Serving(run, "127.0.0.1:0", tmp_path, observers=(watch, tally), figures=()))
        devices = list(fleet(serving.port, 1, over, 20))
        if ends:
            assert some.wait(60)
            assert serving.suspend(60)
            again = f"127.0.0.1:{serving.port}"
            serving = stack.enter_context(Serving(run, again, tmp_path, observers=(watch, tally), figures=()))
        # The deadline comes when all is there that will be, however slow this machine is.
        assert all_.wait(120)
        assert not [event for event in events if isinstance(event, RoundClosed)]
        link = serving.entries[0].listed.link
        assert link is not None
        # Who is still on its way back would not be told of the end.
        ends_at = time.monotonic() + 120
        while not link.devices().keys() >= {*honest(20)}:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
        passed[0] = DEADLINE
        link._outcomes.put(None)
        result = serving.wait(60)
        over.set()
    check_fleet(devices, 1)
    (closed,) = [event for event in events if isinstance(event, RoundClosed)]
    assert closed.updates == len(honest(20))
    faulty = {event.device.split("-")[0] for event in events if isinstance(event, UpdateQuarantined)}
    assert faulty == FAULTY
    # What alerts go by.
    assert tally.updates["accepted"] >= closed.updates
    assert tally.quarantines.keys() == {"not finite", "tensors"}
    assert tally.updates["late"] + tally.updates["lost"] >= sum(role in ("vanishes", "slow") for role in roles(20))
    assert the_same(result.state, reference(described))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sixty_devices_with_every_fault_and_a_coordinator_killed_twice(tmp_path: Path, seed: int) -> None:
    count, rounds, deadline, draws = 60, 3, 8.0, Random(seed)
    described, over, state = document(rounds, deadline, count), threading.Event(), tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    devices, killed = list(fleet(port, seed, over, count)), 0
    while killed < 2:
        process = FORKS.Process(target=coordinate, args=(port, state, described), daemon=True)
        process.start()
        # Any moment of the rounds, or before them; they take longer than both together.
        process.join(draws.uniform(1, rounds * deadline / 2 - 1))
        assert process.exitcode is None
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    last = FORKS.Process(target=coordinate, args=(port, state, described), daemon=True)
    last.start()
    last.join(200)
    over.set()
    assert last.exitcode == 0
    check_fleet(devices, rounds)
    report = json.loads((state / "latest" / "report.json").read_text())
    # To be seen with -s.
    sys.stdout.write(f"{[(row['updates'], row['seconds']) for row in report['rounds']]}\n")
    assert [row["updates"] for row in report["rounds"]] == [len(honest(count))] * rounds
    assert all(row["seconds"] >= deadline for row in report["rounds"])
    assert {row["device"].split("-")[0] for row in report["devices"] if row["quarantined"]} == FAULTY
    assert the_same(ModelFile.read(state / "latest" / "model.safetensors").state, reference(described))
