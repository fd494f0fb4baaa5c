"""What operators see and do, through real stubs: a coordinator, its link and devices on loopback."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from steered import Steered

from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.training import Examples, TrainConfig
from diastole.proto.payload import encode
from diastole.proto.profile import Profile
from diastole.proto.words import REASON_KEY
from diastole.server.coordinator import Coordinator
from diastole.server.errors import AddressError
from diastole.server.events import RoundStarted
from diastole.server.settings import RoundConfig, Settings
from diastole.server.wire.admin_service import WATCHERS, AdminServer, AdminService
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.listed import ListedRun
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc, device_pb2

SECONDS = 20.0
TRAINING = TrainConfig()


class Run:
    """A run of two rounds, named "run", whose coordinator works in a thread once `begin` is called."""

    def __init__(self, link: GrpcLink, model: ModelConfig, folder: Path) -> None:
        draws = torch.Generator().manual_seed(1)
        self.start = initial_state(model, 0)
        self.log = EventLog()
        self.coordinator = Coordinator(
            Settings(model, TRAINING, RoundConfig(count=2), seed=3),
            make_method("width", model, [1.0], TRAINING),
            link,
            self.start,
            test=Examples(torch.randn(20, 1, 8, 8, generator=draws), torch.arange(20) % 10),
            observers=(self.log,),
        )
        self.listed = ListedRun("run", "width", 2, folder, Steered(self.coordinator), self.log, self.coordinator, link)
        self.server = AdminServer("127.0.0.1:0", AdminService([self.listed], link.sessions))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.stub: Any = admin_pb2_grpc.AdminServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self.coordinator.run)

    def begin(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the run did not end"

    def close(self) -> None:
        self.coordinator.stop(now=True)
        if self._thread.ident:
            self.join()
        self.channel.close()
        self.server.close()

    def told(self) -> pb.Run:
        (told,) = self.stub.ListRuns(pb.ListRunsRequest(), timeout=SECONDS).runs
        return told

    def devices(self) -> dict[str, pb.Device]:
        reply = self.stub.ListDevices(pb.ListDevicesRequest(), timeout=SECONDS)
        assert [device.name for device in reply.devices] == sorted(device.name for device in reply.devices)
        return {device.name: device for device in reply.devices}

    def watch(self, after: int = 0) -> Any:
        return self.stub.Watch(pb.WatchRequest(after=after), timeout=SECONDS)


@pytest.fixture
def run(link: GrpcLink, device: Any, model: ModelConfig, tmp_path: Path) -> Iterator[Run]:
    with closing(Run(link, model, tmp_path)) as made:
        yield made


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, str]:
    """Return the status, the reason word and the text that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), dict(error.trailing_metadata()).get(REASON_KEY, ""), error.details()


def of_kind(events: list[pb.Event], kind: str) -> list[dict[str, Any]]:
    return [json.loads(event.json) for event in events if event.kind == kind]


# What is told


def test_many_devices_are_told_in_pages(run: Run, link: GrpcLink) -> None:
    wordy = Profile("small", 1, speeds={f"{kind:060d}": 1.0 for kind in range(64)})
    names = [f"device-{number:04d}" for number in range(500)]
    for name in reversed(names):
        link.sessions.join(name, wordy)
    pages = [run.stub.ListDevices(pb.ListDevicesRequest(), timeout=SECONDS)]
    while pages[-1].more:
        after = pages[-1].devices[-1].name
        pages.append(run.stub.ListDevices(pb.ListDevicesRequest(after=after), timeout=SECONDS))
    assert [device.name for page in pages for device in page.devices] == names
    assert len(pages) > 1
    assert all(page.ByteSize() < 2 << 20 for page in pages)


def test_a_run_is_told_from_its_wait_to_its_end(run: Run, link: GrpcLink, device: Any) -> None:
    told = run.told()
    assert (told.run_id, told.method, told.state) == ("run", "width", pb.Run.STATE_WAITING)
    assert (told.round, told.rounds, told.devices_online) == (0, 2, 0)
    assert not told.HasField("accuracy")

    one = device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.begin()
    assert next(event for event in events if event.kind == "run_started")
    told = run.told()
    assert (told.state, told.round, told.devices_online) == (pb.Run.STATE_RUNNING, 0, 1)

    one.deliver()
    one.deliver()
    run.join()
    ended = run.told()
    assert (ended.state, ended.round, ended.quarantined) == (pb.Run.STATE_FINISHED, 2, 0)
    assert ended.accuracy == run.coordinator.closed[-1].accuracy
    assert ended.elapsed_seconds >= told.elapsed_seconds > 0


def test_a_device_is_told_in_every_state(run: Run, link: GrpcLink, device: Any) -> None:
    assert run.devices() == {}
    two, one = device("two").join(), device("one", examples=30).join()
    assert link.wait(2, SECONDS)
    told = run.devices()
    assert {name: item.state for name, item in told.items()} == dict.fromkeys(("one", "two"), pb.Device.STATE_IDLE)
    assert (told["one"].profile.tier, told["one"].profile.examples) == ("test", 30)
    assert (told["one"].spec_json, told["one"].updates_accepted, told["one"].bytes_down) == ("", 0, 0)

    run.begin()
    sent = one.deliver()
    owed = two.task()
    assert run.devices()["two"].state == pb.Device.STATE_TRAINING
    # What is not finite never reaches the aggregate, and is told of.
    poisoned = {name: tensor * torch.nan for name, tensor in two.state(owed).items()}
    two.upload(owed.task_id, encode(poisoned))
    one.deliver()
    two.deliver()
    run.join()

    told, size = run.devices(), len(encode(sent))
    assert (told["one"].updates_accepted, told["one"].updates_quarantined) == (2, 0)
    assert (told["two"].updates_accepted, told["two"].updates_quarantined) == (1, 1)
    assert run.told().quarantined == 1
    assert told["one"].bytes_down == told["one"].bytes_up == 2 * size
    assert told["one"].train_seconds == pytest.approx(0.2)
    # The other device has a third of the examples, and one update less.
    assert told["one"].train_macs == 6 * told["two"].train_macs > 0
    assert json.loads(told["one"].spec_json)["method"] == "width"

    one.stub.Leave(device_pb2.LeaveRequest(session=one.session), timeout=SECONDS)
    link.sessions.all()["two"].seen -= 100
    link.sessions.lapse()
    told = run.devices()
    assert (told["one"].state, told["two"].state) == (pb.Device.STATE_LEFT, pb.Device.STATE_LOST)
    assert told["two"].idle_seconds > 90 > told["one"].idle_seconds >= 0


def test_an_operator_reads_why_a_size_does_not_fit_a_device(run: Run, link: GrpcLink) -> None:
    planner, (size,) = run.coordinator.planner, run.coordinator.sizes
    small, slow = Profile("test", 10, memory=1000), Profile("test", 10, macs_per_second=1e6)
    link.sessions.join("small", small)
    link.sessions.join("slow", slow)
    planner.observe("slow", slow, size, 3 * planner.seconds("slow", slow, size))

    def explained(name: str) -> pb.Fit:
        (fit,) = run.stub.Explain(pb.ExplainRequest(name=name), timeout=SECONDS).sizes
        return fit

    fit = explained("small")
    assert (fit.size, fit.fits, fit.seconds, fit.correction) == (size.spec.label, False, 0, 1)
    assert "MB of memory, and the device offers 0.001" in fit.why
    fit = explained("slow")
    assert (fit.fits, fit.why, list(fit.levers)) == (True, "", [])
    assert fit.correction == pytest.approx(2)
    assert fit.seconds == planner.seconds("slow", slow, size) > 0
    code, reason, text = refusal(lambda: explained("nobody"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_DEVICE")
    assert "'nobody'" in text


@pytest.mark.parametrize("call", ["ListDevices", "Explain", "Watch", "Pause", "Stop"])
def test_only_the_run_there_is_can_be_named(run: Run, call: str, tmp_path: Path) -> None:
    request = getattr(pb, f"{call}Request")

    def ask(name: str) -> Any:
        answer = getattr(run.stub, call)(request(run_id=name), timeout=SECONDS)
        return list(answer) if call == "Watch" else answer

    code, reason, text = refusal(lambda: ask("other"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_RUN")
    assert "'other'" in text
    assert "run" in text
    assert not run.coordinator.stopping
    assert not (tmp_path / "checkpoints").exists()
    if call not in ("Explain", "Watch"):
        assert ask("run") == ask("") or call in ("Pause", "Stop")


# Following


def follow_whole(run: Run, link: GrpcLink, device: Any) -> list[pb.Event]:
    """Return what a watcher is told who was there before the first event."""
    one = device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.begin()
    one.deliver()
    one.deliver()
    return list(events)


def test_a_watcher_sees_every_event_once_until_the_run_is_over(run: Run, link: GrpcLink, device: Any) -> None:
    events = follow_whole(run, link, device)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events[-1].kind == "run_finished"
    assert [event.seconds for event in events] == sorted(event.seconds for event in events)
    (started,) = of_kind(events, "run_started")
    assert (started["method"], started["rounds"], started["devices"]) == ("width", 2, ["one"])
    assert [item["round"] for item in of_kind(events, "round_started")] == [1, 2]
    assert [item["device"] for item in of_kind(events, "update_accepted")] == ["one", "one"]
    timed = of_kind(events, "round_timed")
    for item in timed:
        assert {phase["name"] for phase in item["phases"]} >= {"wait", "decode", "fold"}
    first = [moved for moved in of_kind(events, "devices_moved") if moved["round"] == 1]
    stages = [move["stage"] for moved in first for move in moved["moves"]]
    # The second round may be open before anybody has noted that the first update is there.
    assert stages[:4] == ["given", "downloading", "training", "uploading"]
    assert stages[4:] in ([], ["delivered"])
    closed = of_kind(events, "round_closed")
    assert [item["round"] for item in closed] == [1, 2]
    assert [item["accuracy"] for item in closed] == [item.accuracy for item in run.coordinator.closed]


def test_a_watcher_may_go_on_behind_any_event(run: Run, link: GrpcLink, device: Any) -> None:
    events = follow_whole(run, link, device)
    for after in (0, 3, len(events) - 1, len(events), len(events) + 5):
        assert list(run.watch(after)) == events[after:]


def test_watchers_that_go_away_make_room_for_others(run: Run) -> None:
    # Whoever is let in is told of this at once.
    run.log(RoundStarted(1, {}))
    watching = [run.watch() for _ in range(WATCHERS)]
    assert [next(events).number for events in watching] == [1] * WATCHERS
    code, reason, text = refusal(lambda: next(run.watch()))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHERS")
    assert text == f"{WATCHERS} others are watching already"
    # Operators are answered beside as many watchers as there may be.
    assert run.told().state == pb.Run.STATE_WAITING

    stays, *leave = watching
    for events in leave:
        events.cancel()
    # Nothing happens in the run meanwhile: one that is gone is noticed all the same.
    came: list[Any] = []
    ends = time.monotonic() + SECONDS
    while len(came) < len(leave):
        assert time.monotonic() < ends
        events = run.watch()
        with suppress(grpc.RpcError):
            next(events)
            came.append(events)
    run.coordinator.stop()
    run.begin()
    for events in (stays, *came):
        assert [event.kind for event in events][-1] == "run_finished"


# Pausing


def test_a_paused_run_closes_its_round_and_begins_no_other(run: Run, link: GrpcLink, device: Any) -> None:
    one = device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.begin()
    next(event for event in events if event.kind == "round_started")
    paused = run.stub.Pause(pb.PauseRequest(), timeout=SECONDS).run
    assert (paused.state, paused.pausing) == (pb.Run.STATE_RUNNING, True)
    one.deliver()
    next(event for event in events if event.kind == "run_paused")
    assert (run.told().state, run.told().round, run.told().pausing) == (pb.Run.STATE_PAUSED, 1, False)
    assert run.stub.Resume(pb.ResumeRequest(), timeout=SECONDS).run.round == 1
    next(event for event in events if event.kind == "round_started")
    code, reason, _ = refusal(lambda: run.stub.Resume(pb.ResumeRequest(), timeout=SECONDS))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_PAUSED")


def test_a_paused_run_can_be_stopped(run: Run, link: GrpcLink, device: Any) -> None:
    device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.stub.Pause(pb.PauseRequest(), timeout=SECONDS)
    run.begin()
    next(event for event in events if event.kind == "run_paused")
    run.stub.Stop(pb.StopRequest(), timeout=SECONDS)
    run.join()
    assert [event.kind for event in events][-1] == "run_finished"


def assert_same(found: Any, expected: Any) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Stopping


def test_stop_lets_the_round_close(run: Run, link: GrpcLink, device: Any) -> None:
    one = device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.begin()
    next(event for event in events if event.kind == "round_started")
    for _ in range(2):
        reply = run.stub.Stop(pb.StopRequest(), timeout=SECONDS)
        assert (reply.run.run_id, reply.run.state, reply.run.round) == ("run", pb.Run.STATE_RUNNING, 0)
    one.deliver()
    rest = list(events)
    (closed,) = of_kind(rest, "round_closed")
    assert (closed["updates"], closed["abandoned"]) == (1, "")
    assert of_kind(rest, "run_finished") == [{"rounds": 1, "stopped": True, "early": "", "failed": ""}]
    run.join()
    assert run.told().state == pb.Run.STATE_STOPPED


def test_stop_at_once_abandons_the_round(run: Run, link: GrpcLink, device: Any) -> None:
    one = device("one").join()
    assert link.wait(1, SECONDS)
    events = run.watch()
    run.begin()
    one.task()
    run.stub.Stop(pb.StopRequest(now=True), timeout=SECONDS)
    rest = list(events)
    (closed,) = of_kind(rest, "round_closed")
    assert (closed["updates"], closed["abandoned"]) == (0, "stopped by the operator")
    run.join()
    assert_same(run.coordinator.last[1], run.start)
    assert run.told().state == pb.Run.STATE_STOPPED


def test_stop_ends_the_wait_for_devices(run: Run) -> None:
    run.begin()
    run.stub.Stop(pb.StopRequest(), timeout=SECONDS)
    run.join()
    told = run.told()
    assert (told.state, told.round) == (pb.Run.STATE_STOPPED, 0)


# The server


def test_an_address_in_use_is_one_line(run: Run, link: GrpcLink, tmp_path: Path) -> None:
    service = AdminService([run.listed], link.sessions)
    with pytest.raises(AddressError) as caught:
        AdminServer(f"127.0.0.1:{run.server.port}", service)
    assert str(run.server.port) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closing_the_server_ends_its_watchers(run: Run) -> None:
    run.log(RoundStarted(1, {}))
    events = run.watch()
    next(events)
    run.server.close()
    with pytest.raises(grpc.RpcError):
        list(events)
