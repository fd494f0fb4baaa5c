"""What is kept of a long run's events."""

import json
import threading
from typing import Any

from diastole.server.events import DeviceLeft, RunFinished
from diastole.server.wire.event_log import EventLog


class Caller:
    """A caller that stays."""

    def is_active(self) -> bool:
        return True

    def add_callback(self, callback: Any) -> None:
        self.gone = callback


def filled(count: int, most: int = 10_000) -> EventLog:
    log = EventLog(most)
    for number in range(1, count + 1):
        log(DeviceLeft("one", f"{number:06d}"))
    log(RunFinished(0, stopped=False))
    return log


def reasons(events: list[Any]) -> list[int]:
    return [int(json.loads(event.json)["reason"]) for event in events if event.kind == "device_left"]


def test_few_events_are_all_kept() -> None:
    events = list(filled(10).follow(0, Caller()))
    assert [event.number for event in events] == list(range(1, 12))
    assert reasons(events) == list(range(1, 11))
    assert reasons(list(filled(10).follow(7, Caller()))) == [8, 9, 10]


def test_the_oldest_of_many_events_are_dropped_and_a_follower_is_told() -> None:
    log = filled(1000)
    note, *events = log.follow(0, Caller())
    assert sum(event.ByteSize() for event in events) <= 10_000
    assert len(events) > 50
    assert (note.kind, note.number) == ("events_dropped", events[0].number - 1)
    assert json.loads(note.json) == {"events": 1001 - len(events)}
    assert reasons(events) == list(range(events[0].number, 1001))
    assert [event.number for event in events] == list(range(events[0].number, 1002))
    # Numbers mean what they meant.
    assert reasons(list(log.follow(998, Caller()))) == [999, 1000]
    note, *_ = log.follow(5, Caller())
    assert json.loads(note.json) == {"events": 996 - len(events)}


def test_a_follower_that_is_slow_goes_on_behind_what_was_dropped() -> None:
    log = EventLog(10_000)
    log(DeviceLeft("one", "1"))
    following = log.follow(0, Caller())
    first = next(following)
    for number in range(2, 1001):
        log(DeviceLeft("one", f"{number:06d}"))
    log(RunFinished(0, stopped=False))
    note, *events = following
    assert (first.number, note.kind) == (1, "events_dropped")
    assert note.number + 1 == events[0].number == reasons(events)[0]
    assert json.loads(note.json) == {"events": events[0].number - 2}


def test_an_event_wakes_a_follower() -> None:
    log, found = EventLog(), list[Any]()
    thread = threading.Thread(target=lambda: found.extend(log.follow(0, Caller())))
    thread.start()
    log(RunFinished(0, stopped=False))
    thread.join(10)
    assert [event.kind for event in found] == ["run_finished"]
