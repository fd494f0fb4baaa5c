import math
import threading

import pytest

from diastole.proto.profile import Profile
from diastole.server.wire.sessions import CrowdedError, Session, Sessions, lease_of

PROFILE = Profile("small", 10)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(least=10.0, clock=clock)


def ready(sessions: Sessions, *names: str) -> list[Session]:
    joined = [sessions.join(name, PROFILE) for name in names]
    for session in joined:
        sessions.connect(session, object())
    return joined


def test_a_token_finds_its_session_and_nothing_else_does(sessions: Sessions) -> None:
    one, two = sessions.join("a", PROFILE, "1.0"), sessions.join("b", PROFILE)
    assert sessions.touch(one.token) is one
    assert sessions.touch(two.token) is two
    assert one.token != two.token
    assert len(one.token) >= 32
    for token in ("", "a", one.token[:-1]):
        assert sessions.touch(token) is None
    assert (one.name, one.profile, one.agent_version) == ("a", PROFILE, "1.0")


def test_a_lease_lapses_when_no_call_came_for_longer_than_it(sessions: Sessions, clock: Clock) -> None:
    session = sessions.join("a", PROFILE)
    clock.now += 10.0
    assert sessions.lapse() == []
    clock.now += 0.1
    assert sessions.lapse() == [session]
    assert session.lost
    assert not session.alive
    assert sessions.touch(session.token) is None
    assert sessions.lapse() == []


def test_any_touch_renews_the_lease(sessions: Sessions, clock: Clock) -> None:
    session, silent = sessions.join("a", PROFILE), sessions.join("b", PROFILE)
    clock.now += 8.0
    assert sessions.touch(session.token) is session
    clock.now += 8.0
    assert sessions.lapse() == [silent]
    assert sessions.idle(session) == 8.0
    clock.now += 2.1
    assert sessions.lapse() == [session]


@pytest.mark.parametrize(
    ("least", "sessions", "lease"), [(30, 0, 30), (30, 1500, 30), (30, 20_000, 400), (0.5, 100, 2)]
)
def test_a_lease_is_as_long_as_the_fleet_needs(least: float, sessions: int, lease: float) -> None:
    assert lease_of(least, sessions) == lease


def crowd(clock: Clock) -> tuple[Sessions, list[Session]]:
    """Return 200 sessions, whose leases grow from 1 s to 4 s."""
    sessions = Sessions(least=1.0, clock=clock)
    return sessions, [sessions.join(f"{number}", PROFILE) for number in range(200)]


def test_a_device_that_was_told_of_a_longer_lease_is_not_lost_before(clock: Clock) -> None:
    sessions, joined = crowd(clock)
    first, last = joined[0], joined[-1]
    assert (first.lease, last.lease) == (1.0, 4.0)
    assert sessions.beat(first, 1.0) == 4.0
    clock.now += 2.0
    lapsed = sessions.lapse()
    assert lapsed == [each for each in joined if each.lease < 2.0]
    assert len(lapsed) == 98
    clock.now += 1.9
    sessions.lapse()
    assert first.alive
    assert last.alive
    clock.now += 0.2
    sessions.lapse()
    assert not first.alive
    assert not last.alive


def test_a_lease_gets_shorter_only_once_the_device_has_heard_of_it(clock: Clock) -> None:
    sessions, joined = crowd(clock)
    last = joined.pop()
    for each in joined:
        sessions.leave(each)
    # The answer to the first may be lost.
    for kept, lease in ((4.0, 4.0), (0.0, 4.0), (math.nan, 4.0), (1e9, 4.0), (3.0, 3.0), (1.0, 1.0), (1e9, 1.0)):
        assert sessions.beat(last, kept) == 1.0
        assert last.lease == lease


def test_expected_devices_have_the_lease_of_all_of_them(clock: Clock) -> None:
    sessions = Sessions(least=1.0, clock=clock)
    for number in range(200):
        sessions.expect(f"{number}", PROFILE)
    clock.now += 3.9
    assert sessions.lapse() == []
    clock.now += 0.2
    assert len(sessions.lapse()) == 200


def test_traffic_and_streams_do_not_renew_it(sessions: Sessions, clock: Clock) -> None:
    (session,) = ready(sessions, "a")
    clock.now += 11.0
    sessions.moved(session, "run", bytes_down=5)
    sessions.connect(session, object())
    assert sessions.lapse() == [session]


def test_joining_again_ends_the_old_token_and_carries_the_traffic(sessions: Sessions, clock: Clock) -> None:
    old = sessions.join("a", PROFILE)
    sessions.connect(old, object())
    sessions.moved(old, "run", bytes_down=100, bytes_up=7)
    sessions.moved(old, "run", bytes_up=3)
    clock.now += 1.0
    new = sessions.join("a", Profile("large", 20))
    assert sessions.touch(old.token) is None
    assert not old.alive
    assert sessions.touch(new.token) is new
    assert (new.bytes_down, new.bytes_up, new.seen, new.profile.tier) == (100, 10, 101.0, "large")
    assert new.stream is None
    assert sessions.all() == {"a": new}
    assert sessions.ready() == {}


def test_the_end_of_an_old_session_does_not_touch_the_new_one(sessions: Sessions, clock: Clock) -> None:
    (old,) = ready(sessions, "a")
    (new,) = ready(sessions, "a")
    sessions.connect(old, None)
    sessions.leave(old)
    assert sessions.ready() == {"a": new}
    assert sessions.touch(new.token) is new
    clock.now += 11.0
    assert sessions.lapse() == [new]


def test_a_device_that_lapsed_may_join_again(sessions: Sessions, clock: Clock) -> None:
    (old,) = ready(sessions, "a")
    sessions.moved(old, "run", bytes_down=5)
    clock.now += 11.0
    assert sessions.lapse() == [old]
    (new,) = ready(sessions, "a")
    assert new.bytes_down == 5
    assert sessions.ready() == {"a": new}
    assert old.lost


def test_leaving_ends_the_session_at_once_and_keeps_its_account(sessions: Sessions, clock: Clock) -> None:
    (session,) = ready(sessions, "a")
    sessions.moved(session, "run", bytes_up=9)
    sessions.leave(session)
    assert sessions.touch(session.token) is None
    assert (session.alive, session.left, session.lost) == (False, True, False)
    assert sessions.ready() == {}
    assert sessions.all()["a"].bytes_up == 9
    clock.now += 11.0
    assert sessions.lapse() == []


def test_ready_are_those_alive_with_a_stream(sessions: Sessions, clock: Clock) -> None:
    one, two, three = ready(sessions, "a", "b", "c")
    sessions.join("d", PROFILE)
    assert sessions.ready() == {"a": one, "b": two, "c": three}
    sessions.connect(one, None)
    sessions.leave(two)
    assert sessions.ready() == {"c": three}
    clock.now += 11.0
    sessions.lapse()
    assert sessions.ready() == {}
    assert set(sessions.all()) == {"a", "b", "c", "d"}


def test_waiting_ends_as_soon_as_enough_are_ready(sessions: Sessions) -> None:
    ready(sessions, "a")
    assert sessions.wait(1, 0.0, lambda: False)
    assert not sessions.wait(2, 0.0, lambda: False)
    session = sessions.join("b", PROFILE)
    result: list[bool] = []
    waiter = threading.Thread(target=lambda: result.append(sessions.wait(2, 60.0, lambda: False)))
    waiter.start()
    sessions.connect(session, object())
    waiter.join(30.0)
    assert result == [True]


def test_waking_lets_a_waiter_see_that_it_is_over(sessions: Sessions) -> None:
    stopped = threading.Event()
    result: list[bool] = []
    waiter = threading.Thread(target=lambda: result.append(sessions.wait(1, 60.0, stopped.is_set)))
    waiter.start()
    stopped.set()
    sessions.wake()
    waiter.join(30.0)
    assert result == [False]
    ready(sessions, "a")
    assert not sessions.wait(1, 0.0, lambda: True)


def test_no_more_join_than_are_taken_and_a_name_that_is_there_may_come_again(clock: Clock) -> None:
    sessions = Sessions(least=10.0, clock=clock, most=2)
    one, _ = ready(sessions, "a", "b")
    with pytest.raises(CrowdedError, match="2 devices have joined"):
        sessions.join("c", PROFILE)
    (one,) = ready(sessions, "a")
    sessions.leave(one)
    ready(sessions, "c")
    assert set(sessions.ready()) == {"b", "c"}


def test_of_those_that_have_gone_the_latest_are_remembered(clock: Clock) -> None:
    sessions = Sessions(least=10.0, clock=clock, gone=3)
    (stays,) = ready(sessions, "stays")
    for number in range(10):
        sessions.leave(sessions.join(f"stranger-{number}", PROFILE))
    assert set(sessions.all()) == {"stays", "stranger-7", "stranger-8", "stranger-9"}
    # Who comes back is not forgotten for having been away.
    back = sessions.join("stranger-7", PROFILE)
    for number in range(10, 20):
        sessions.leave(sessions.join(f"stranger-{number}", PROFILE))
    assert set(sessions.all()) == {"stays", "stranger-7", *(f"stranger-{number}" for number in (17, 18, 19))}
    assert sessions.named("stranger-0") is None
    assert sessions.named("stranger-7") is back
    clock.now += 9.0
    sessions.touch(stays.token)
    clock.now += 2.0
    assert sessions.lapse() == [back]
    assert set(sessions.ready()) == {"stays"}
