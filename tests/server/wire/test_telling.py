"""Tests of telling devices of their tasks."""

import asyncio
from collections.abc import Callable

import pytest

from diastole.proto.profile import Profile
from diastole.server.wire import telling
from diastole.server.wire.sessions import Session, Sessions
from diastole.server.wire.telling import UNHEARD, tell

NAMES = [f"d{number}" for number in range(3 * UNHEARD)]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait without end for those that do not call."""
    monkeypatch.setattr(telling, "LOOKS", 1 << 30)


def told_of(count: int, there: Callable[[str], bool], calls: bool, crowded: Callable[[list[str]], bool]) -> list[str]:
    """Return who has been told when `count` have been, and some looks have passed."""
    sessions, told = Sessions(60.0), list[str]()
    for name in NAMES:
        sessions.join(name, Profile("phone", 1))

    def give(name: str) -> Session | None:
        session = sessions.named(name)
        if session is None or not there(name):
            return None
        told.append(name)
        if calls:
            asyncio.get_running_loop().call_later(0.001, sessions.touch, session.token)
        return session

    async def run() -> list[str]:
        task = asyncio.create_task(tell(NAMES, give, lambda: crowded(told)))
        async with asyncio.timeout(60):
            while len(told) < count:
                await asyncio.sleep(0.001)
        await asyncio.wait([task], timeout=3 * telling.LOOK_SECONDS)
        first = list(told)
        task.cancel()
        await asyncio.wait([task])
        return first

    return asyncio.run(run())


def test_devices_that_call_make_room_for_others() -> None:
    assert told_of(len(NAMES), lambda name: True, True, lambda told: False) == NAMES


def test_few_are_told_before_they_call() -> None:
    assert told_of(UNHEARD, lambda name: True, False, lambda told: False) == NAMES[:UNHEARD]


def test_devices_that_are_not_there_are_not_waited_for() -> None:
    last = set(NAMES[-2:])
    assert told_of(2, lambda name: name in last, False, lambda told: False) == NAMES[-2:]


def test_nobody_is_told_while_others_wait_for_their_turn() -> None:
    assert told_of(3, lambda name: True, True, lambda told: len(told) > 2) == NAMES[:3]


def test_a_device_that_never_calls_holds_the_others_up_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LOOKS", 2)
    sessions, told = Sessions(60.0), list[str]()

    def give(name: str) -> Session | None:
        told.append(name)
        return sessions.join(name, Profile("phone", 1))

    asyncio.run(tell(NAMES[: UNHEARD + 2], give))
    assert told == NAMES[: UNHEARD + 2]
