"""A stopwatch against a clock that stands still unless told otherwise."""

from collections.abc import Iterator

import pytest

from diastole.server import stopwatch
from diastole.server.events import Phase
from diastole.server.stopwatch import Stopwatch, phase


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_what_is_not_waiting_is_work(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 3
    with watch.waiting():
        clock.now += 5
    clock.now += 1
    assert (watch.seconds, watch.worked) == (9, 4)


def test_waiting_that_fails_is_waiting_too(clock: Clock) -> None:
    def fail() -> None:
        with watch.waiting():
            clock.now += 2
            raise ValueError("gone")

    watch = Stopwatch()
    with pytest.raises(ValueError, match="gone"):
        fail()
    assert (watch.seconds, watch.worked) == (2, 0)


def test_only_the_coming_of_items_is_waiting(clock: Clock) -> None:
    def slow() -> Iterator[str]:
        for item in "abc":
            clock.now += 10
            yield item
        clock.now += 7

    watch, seen = Stopwatch(), []
    for item in watch.awaited(slow()):
        seen.append(item)
        clock.now += 1
    assert seen == ["a", "b", "c"]
    assert (watch.seconds, watch.worked) == (40, 3)


def test_a_phase_inside_another_is_counted_for_itself(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.running(), phase("fold"):
        clock.now += 1
        for _ in range(2):
            with watch.waiting():
                clock.now += 10
            clock.now += 2
    with phase("evaluate"):
        clock.now += 50
    assert [(each.name, each.seconds) for each in watch.phases] == [("fold", 5), ("wait", 20)]
    fold, wait = watch.phases
    assert (fold.began, fold.ended) == (1100, 1125)
    assert (wait.began, wait.ended) == (1101, 1123)
    assert fold == Phase("fold", 0, 0, 0), "times are no part of what two runs have in common"
