"""Whom a run waits for, and what it says of those who are there and cannot be given a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scripted import MODEL, TRAINING, ScriptedLink, only

from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import DevicesAwaited, Event, RoundClosed, RoundStarted
from diastole.server.overrides import Override
from diastole.server.settings import RoundConfig, Settings
from diastole.server.store.journal import Journal
from diastole.server.store.memory import MemoryStore
from diastole.server.store.store import RunRow
from diastole.server.waiting import BACK_SECONDS

SMALLEST = make_method("width", MODEL, [1.0, 0.5], TRAINING).offers()[0].cost.memory


@dataclass
class Arrivals(ScriptedLink):
    """Devices come one after another, one each time that the coordinator waits; some of them have too little memory."""

    later: list[Mapping[str, int]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    now: float = 0.0
    waits: int = 0

    def devices(self) -> Mapping[str, Profile]:
        return {name: Profile("test", 12, memory) for name, memory in self.memory.items()}

    def wait(self, count: int, seconds: float) -> bool:
        self.waits += 1
        assert self.waits < 50
        if len(self.memory) < count:
            self._pass(seconds)
        return len(self.memory) >= count

    def dispatch(self, tasks: Any, states: Any, deadline: Any) -> Any:
        if not tasks:
            self._pass(1.0)
        yield from super().dispatch(tasks, states, deadline)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        if self.later:
            self.memory |= self.later.pop(0)


def play(link: Arrivals, rounds: int = 2, **settings: Any) -> list[Event]:
    events: list[Event] = []
    config = RoundConfig(count=rounds, patience=settings.pop("patience", None))
    Coordinator(
        Settings(MODEL, TRAINING, config, seed=3, **settings),
        make_method("width", MODEL, [1.0, 0.5], TRAINING),
        link,
        initial_state(MODEL, 0),
        observers=(events.append,),
        clock=lambda: link.now,
    ).run()
    return events


def test_devices_that_fit_nothing_start_no_run_and_are_named() -> None:
    link = Arrivals([], later=[{"stranger": 10}, {"a": SMALLEST}, {}, {}, {"b": SMALLEST}])
    events = play(link, devices=2, expected={"test": 2})
    stranger = (
        f"stranger is there, but no size fits it (width 0.5: it takes {SMALLEST / 1e6:.3g} MB of memory, "
        "and the device offers 1e-05)"
    )
    assert [event.message for event in only(events, DevicesAwaited)] == [
        "0 of 2 devices; missing are 2 of tier test",
        f"0 of 2 devices; missing are 2 of tier test; {stranger}",
        f"1 of 2 devices; missing are 1 of tier test; {stranger}",
    ]
    assert [event.specs for event in only(events, RoundStarted)] == [{"a": "width 0.5", "b": "width 0.5"}] * 2


def test_rounds_without_a_task_are_no_rounds() -> None:
    link = Arrivals([], memory={"stranger": 10}, later=[{}, {}, {}, {"a": SMALLEST}])
    events = play(link, devices=0)
    assert [(closed.round, closed.updates) for closed in only(events, RoundClosed)] == [(1, 1), (2, 1)]
    assert len(only(events, DevicesAwaited)) == 1


def test_patience_ends_a_run_that_nobody_can_take_part_in() -> None:
    with pytest.raises(RoundError, match=r"0 of 1 devices; stranger is there, but .* after waiting 31 s"):
        play(Arrivals([], memory={"stranger": 10}), devices=0, patience=30.0)
    with pytest.raises(RoundError, match=r"0 of 2 devices; missing are 2 of tier test after waiting 30 s"):
        play(Arrivals([]), devices=2, expected={"test": 2}, patience=30.0)


def test_without_patience_the_run_waits_as_long_as_it_takes() -> None:
    link = Arrivals([], later=[{}] * 40 + [{"a": SMALLEST}])
    assert [closed.updates for closed in only(play(link), RoundClosed)] == [1, 1]
    assert link.now == 205.0


def test_a_run_that_has_begun_waits_for_a_while_for_who_does_not_come_back(tmp_path: Path) -> None:
    """A coordinator that was killed between two rounds; one of three devices has vanished in the first."""
    store, events = MemoryStore(), list[Event]()
    store.add_run(RunRow("run", "here", "label"))

    def coordinator(link: Arrivals, rounds: int, closed: int, **more: Any) -> Coordinator:
        return Coordinator(
            Settings(MODEL, TRAINING, RoundConfig(count=rounds), seed=3, devices=3),
            make_method("width", MODEL, [1.0, 0.5], TRAINING),
            link,
            initial_state(MODEL, 0),
            clock=lambda: link.now,
            journal=Journal(store, "run", tmp_path, closed),
            **more,
        )

    first = coordinator(Arrivals([], memory=dict.fromkeys("abc", SMALLEST)), 1, 0)
    first.run()
    link = Arrivals([], memory={"a": SMALLEST}, later=[{"b": SMALLEST}])
    second = coordinator(link, 2, 1, observers=(events.append,))
    second.resume(first.snapshot())
    second.run()
    assert link.now == BACK_SECONDS
    assert [event.updates for event in only(events, RoundClosed)] == [2]
    assert [event.message for event in only(events, DevicesAwaited)] == ["1 of 3 devices"]


def test_nobody_is_awaited_in_the_place_of_a_device_that_is_there_and_kept_out() -> None:
    kept_out = {"c*": Override(exclude=True)}
    link = Arrivals([], later=[{"c1": SMALLEST}, {"c2": SMALLEST}, {"a": SMALLEST}])
    events = play(link, devices=3, overrides=kept_out)
    assert [set(event.specs) for event in only(events, RoundStarted)] == [{"a"}] * 2
    said = [event.message for event in only(events, DevicesAwaited)]
    assert said[1] == "0 of 2 devices; c1 is there, but the operator excludes it by an override"
    # One device at least takes part.
    alone = Arrivals([], later=[{"c1": SMALLEST}])
    with pytest.raises(RoundError, match="0 of 1 devices; c1 is there, but the operator excludes it"):
        play(alone, devices=1, overrides=kept_out, patience=30.0)
