"""How often an agent is heard of, by what its coordinator says."""

import math
import threading

import pytest

from diastole.client.heartbeats import Heartbeats


class Waits(threading.Event):
    """Notes how long would be waited, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture
def heartbeats() -> Heartbeats:
    made = Heartbeats()
    made._changed = Waits()
    made.go_by(30.0)
    return made


def beaten(heartbeats: Heartbeats, *told: float) -> tuple[list[float], list[float]]:
    """Return the leases that were gone by, and the pauses before, with a coordinator that tells these."""
    kept: list[float] = []

    def beat(lease: float) -> float:
        kept.append(lease)
        if len(kept) > len(told):
            heartbeats.end()
            return 0.0
        return told[len(kept) - 1]

    heartbeats.run(beat)
    waits = heartbeats._changed
    assert isinstance(waits, Waits)
    # The first was for the join, which had come.
    return kept, waits.seconds[1:]


def test_an_agent_calls_three_times_a_lease_as_it_is_told(heartbeats: Heartbeats) -> None:
    assert beaten(heartbeats, 0.0, 600.0, 60.0) == ([30.0, 30.0, 600.0, 60.0], [10.0, 10.0, 200.0, 20.0])


def test_what_it_is_told_has_the_bounds_of_a_join(heartbeats: Heartbeats) -> None:
    kept, _ = beaten(heartbeats, 1e300, -1.0, math.inf, math.nan)
    assert kept == [30.0, 3600.0, 0.5, 3600.0, 0.5]


def test_a_lease_of_a_new_session_begins_at_once_and_an_answer_in_the_old_one_is_no_more_heeded(
    heartbeats: Heartbeats,
) -> None:
    kept: list[float] = []

    def beat(lease: float) -> float:
        kept.append(lease)
        if len(kept) == 1:
            heartbeats.go_by(6.0)
            return 600.0
        heartbeats.end()
        return 0.0

    heartbeats.run(beat)
    waits = heartbeats._changed
    assert isinstance(waits, Waits)
    assert kept == [30.0, 6.0]
    assert waits.seconds == [10.0, 10.0, 2.0, 2.0]


@pytest.mark.parametrize("closed", [True, False])
def test_a_heartbeat_over_a_channel_that_has_been_closed_is_the_last(closed: bool) -> None:
    heartbeats = Heartbeats()
    heartbeats._changed = Waits()

    def beat(lease: float) -> float:
        if closed:
            heartbeats.end()
        raise ValueError("Cannot invoke RPC on closed channel!")

    if closed:
        heartbeats.run(beat)
    else:
        with pytest.raises(ValueError, match="closed channel"):
            heartbeats.run(beat)


def test_an_agent_that_is_closed_waits_for_no_heartbeat() -> None:
    heartbeats = Heartbeats()
    heartbeats.go_by(3600.0)
    thread = threading.Thread(target=heartbeats.run, args=(lambda lease: 0.0,), daemon=True)
    thread.start()
    heartbeats.end()
    thread.join(10)
    assert not thread.is_alive()
