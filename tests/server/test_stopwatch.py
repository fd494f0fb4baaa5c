"""A stopwatch against a clock that stands still unless told otherwise."""

from collections.abc import Iterator

import pytest

from diastole.server import stopwatch
from diastole.server.stopwatch import Stopwatch


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


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
