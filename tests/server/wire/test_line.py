"""The line of transfers: large ones begin a few at a time where they are fast."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from diastole.server.wire import line
from diastole.server.wire.bounds import TransferBounds
from diastole.server.wire.line import LARGE, LARGE_BYTES, Line
from diastole.server.wire.sessions import CrowdedError

LONG = 1e6
"""Seconds that no test takes."""


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Look at those that move from the first moment on, and wait without end for room."""

    def change(**seconds: float) -> None:
        for name, value in seconds.items():
            monkeypatch.setattr(line, name, value)

    change(ROOM_SECONDS=LONG, SEEN_SECONDS=0.0, CALM_SECONDS=0.0, EXPECTED_SECONDS=LONG)
    return change


def run(test: Callable[[Line], Coroutine[Any, Any, None]], line_seconds: float = LONG) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await test(Line(TransferBounds(line_seconds=line_seconds), lambda: 0))

    asyncio.run(within())


async def moving(into: AsyncExitStack, line: Line, size: int, count: int = LARGE) -> None:
    """Begin large transfers that have moved so many bytes."""
    for number in range(count):
        await line.ask(f"{number}", LARGE_BYTES)
        (await into.enter_async_context(line.place(f"{number}")))(size)


async def turns() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_one_more_begins_when_a_fast_one_has_ended() -> None:
    async def test(line: Line) -> None:
        async with AsyncExitStack() as most:
            async with AsyncExitStack() as one:
                await moving(most, line, 1 << 40, LARGE - 1)
                await moving(one, line, 1 << 40, 1)
                asked = asyncio.create_task(line.ask("more", LARGE_BYTES))
                await turns()
                assert not asked.done()
                assert line.waits
                await line.ask("small", LARGE_BYTES - 1)
            await asked
            assert not line.waits
            # It is expected now, so that the next one waits.
            after = asyncio.create_task(line.ask("after", LARGE_BYTES))
            await turns()
            assert not after.done()
            async with line.place("more"):
                pass
            await after

    run(test)


def test_one_more_begins_at_once_where_they_are_slow() -> None:
    async def test(line: Line) -> None:
        async with AsyncExitStack() as all_:
            await moving(all_, line, 0)
            await line.ask("more", LARGE_BYTES)

    run(test)


def test_one_more_begins_after_a_while(times: Callable[..., None]) -> None:
    times(ROOM_SECONDS=0.0)

    async def test(line: Line) -> None:
        async with AsyncExitStack() as all_:
            await moving(all_, line, 1 << 40, 2 * LARGE)

    run(test)


def test_who_has_waited_for_long_is_told_to_come_back() -> None:
    async def test(line: Line) -> None:
        async with AsyncExitStack() as all_:
            await moving(all_, line, 1 << 40)
            with pytest.raises(CrowdedError, match="come back later"):
                await line.ask("more", LARGE_BYTES)
            assert not line.waits

    run(test, line_seconds=0.1)
