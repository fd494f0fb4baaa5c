"""The line of transfers in one direction."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from diastole.server.wire.bounds import TransferBounds
from diastole.server.wire.sessions import CrowdedError

CALM_SECONDS, LOOKS = 0.002, 25
"""A transfer begins when nobody has called for so long, or when it has looked so often."""

FREELY = 2
"""Transfers that begin at once."""

LARGE, LARGE_BYTES = 4, 1 << 18
"""So many large transfers begin at once. Each holds 1 to 2.5 MB of memory while it moves."""

ROOM_SECONDS, SEEN_SECONDS = 0.5, 0.1
"""One more begins when so much time has passed without room for it; those that move are looked at for a while first."""

FAST, PROMPT_SECONDS = 4e6, 0.01
"""Bytes a second of one of several transfers, and the seconds of a look. Where transfers are slower and looks are not,
devices are slow, and this machine is not."""

EXPECTED_SECONDS = 1.0
"""After which a transfer that has been let begin, and has not, is not expected any more."""


class Line:
    """Lets so many transfers move at a time; the others wait in line, for a while.

    gRPC lets calls in one after the other, and between two of them every transfer moves on. So where several move, more
    of them begin only while nobody calls: calls are answered first.
    """

    def __init__(self, bounds: TransferBounds, calls: Callable[[], int]) -> None:
        """Begin without transfers; `calls` returns how many calls there have been, of any kind."""
        self._bounds, self._calls = bounds, calls
        self._free = asyncio.Semaphore(bounds.places)
        self._next, self._asking = asyncio.Lock(), asyncio.Lock()
        self._moving = self._waiting = self._asked = 0
        self._expected: set[str] = set()
        # Of each transfer that moves: when it began, and the bytes that it has moved since.
        self._moved: dict[object, tuple[float, int]] = {}

    @property
    def moving(self) -> int:
        """How many have a place."""
        return self._moving

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return self._waiting

    @property
    def waits(self) -> bool:
        """Whether somebody waits."""
        return self._waiting + self._asked > 0

    async def ask(self, who: str, size: int) -> None:
        """Wait, for a while, until a transfer of so many bytes may begin, which holds memory from its first byte on.

        Where several large ones move fast, more of them would not be faster together. Raises `CrowdedError` if too many
        wait.
        """
        if size < LARGE_BYTES:
            return
        self._asked += 1
        try:
            async with asyncio.timeout(self._bounds.line_seconds), self._asking:
                await self._room()
        except TimeoutError:
            raise CrowdedError("many other transfers are about to begin; come back later") from None
        finally:
            self._asked -= 1
        self._expected.add(who)
        asyncio.get_running_loop().call_later(EXPECTED_SECONDS, self._expected.discard, who)

    @asynccontextmanager
    async def place(self, who: str) -> AsyncIterator[Callable[[int], None]]:
        """Wait for a place and keep it for the block, which tells what it is given how many bytes have moved.

        Raises `CrowdedError` if there is no place for too long, or if others wait while this one has had its turn.
        """
        self._waiting += 1
        try:
            async with asyncio.timeout(self._bounds.line_seconds):
                await self._turn()
            self._expected.discard(who)
        except TimeoutError:
            raise CrowdedError(f"{self._bounds.places} other transfers are under way; come back later") from None
        finally:
            self._waiting -= 1
        clock, this = asyncio.get_running_loop().time, object()
        began = clock()
        ends = began + self._bounds.turn_seconds
        self._moved[this] = began, 0

        def moved(size: int) -> None:
            self._moved[this] = began, self._moved[this][1] + size
            if self._waiting and clock() > ends:
                raise CrowdedError("other transfers wait in line; go on with this one later")

        try:
            yield moved
        finally:
            del self._moved[this]
            self._moving -= 1
            self._free.release()

    async def _turn(self) -> None:
        """Take a place when it is this transfer's turn."""
        async with self._next:
            looks = LOOKS if self._moving >= FREELY else 0
            for _ in range(looks):
                before = self._calls()
                await asyncio.sleep(CALM_SECONDS)
                if self._calls() == before:
                    break
            await self._free.acquire()
            self._moving += 1

    async def _room(self) -> None:
        """Wait until few move or are expected to, or those that move are slow, or for `ROOM_SECONDS`."""
        clock = asyncio.get_running_loop().time
        asked, looks = clock(), 0
        while self._moving + len(self._expected) >= LARGE and (now := clock()) < asked + ROOM_SECONDS:
            seconds = sum(now - began for began, _ in self._moved.values())
            slow = seconds > SEEN_SECONDS * LARGE and sum(size for _, size in self._moved.values()) < FAST * seconds
            # Where this machine is busy, its looks come late.
            if slow and now >= asked + SEEN_SECONDS and looks * PROMPT_SECONDS >= now - asked:
                return
            await asyncio.sleep(CALM_SECONDS)
            looks += 1
