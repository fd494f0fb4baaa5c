"""Who is told of a run, and who may end it."""

from typing import Any

import pytest
import torch
from scripted import MODEL, TRAINING, ScriptedLink, only

from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import (
    DeviceJoined,
    DeviceLeft,
    Event,
    RoundClosed,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateAccepted,
)
from diastole.server.settings import RoundConfig, Settings
from diastole.server.snapshot import Snapshot


def federation(link: Any, **more: Any) -> Coordinator:
    settings = Settings(MODEL, TRAINING, RoundConfig(count=2), seed=3)
    return Coordinator(settings, make_method("width", MODEL, [1.0], TRAINING), link, initial_state(MODEL, 0), **more)


def test_an_observer_that_raises_is_logged_and_dropped_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    heard: list[Event] = []

    def broken_pipe(event: Event) -> None:
        told.append(event)
        if isinstance(event, UpdateAccepted):
            raise BrokenPipeError("nobody reads this any more")

    coordinator = federation(ScriptedLink(["a", "b"]), observers=(broken_pipe, heard.append))
    coordinator.run()
    assert heard[-1] == RunFinished(2, stopped=False)
    # Nothing is told again behind the one that failed.
    assert [type(event) for event in told] == [RunStarted, RoundStarted, UpdateAccepted]
    assert len(only(heard, UpdateAccepted)) == 4
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "broken_pipe" in record.getMessage()
    assert "nobody reads this any more" in caplog.text


def test_nothing_is_told_behind_the_end_of_the_run() -> None:
    events: list[Event] = []
    link = ScriptedLink(["a"])
    federation(link, observers=(events.append,)).run()
    link.tell(DeviceLeft("a", "the run is over"))
    assert events[-1] == RunFinished(2, stopped=False)


def test_an_observer_may_end_the_run_as_whoever_interrupts_it_does() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation(ScriptedLink(["a"]), observers=(interrupted,)).run()


def test_a_snapshot_that_cannot_be_kept_ends_the_run_before_the_round_is_told() -> None:
    kept: list[Snapshot] = []
    events: list[Event] = []

    def keep(snapshot: Snapshot) -> None:
        kept.append(snapshot)
        if len(snapshot.closed) == 2:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        federation(ScriptedLink(["a"]), observers=(events.append,), keep=keep).run()
    assert [len(snapshot.closed) for snapshot in kept] == [1, 2]
    assert [closed.round for closed in only(events, RoundClosed)] == [1]
    assert not only(events, RunFinished)


def test_a_kept_snapshot_is_what_the_next_coordinator_goes_on_from() -> None:
    kept: list[Snapshot] = []
    whole = federation(ScriptedLink(["a", "b"]), keep=kept.append).run()
    again = federation(ScriptedLink(["a", "b"]))
    again.resume(kept[0])
    assert again.last[0] == 1
    state = again.run()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_devices_that_come_and_go_are_told_and_their_profiles_kept() -> None:
    events: list[Event] = []
    link = ScriptedLink(["a"])
    link.spoil = lambda update: (link.tell(DeviceJoined("b", "test", 12)), link.tell(DeviceLeft("b", "x")), update)[2]
    coordinator = federation(link, observers=(events.append,))
    coordinator.run()
    assert only(events, DeviceJoined) == [DeviceJoined("b", "test", 12)] * 2
    assert only(events, DeviceLeft) == [DeviceLeft("b", "x")] * 2
    assert coordinator.ledger["a"].profile == Profile("test", 12)
