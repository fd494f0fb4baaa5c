"""Telling devices of their tasks, so that the calls of very many do not come all at once.

gRPC lets in one call after the other, in the order in which they came. A heartbeat that comes behind a thousand
downloads would wait until each of them is under way.
"""

import asyncio
from collections.abc import Callable, Iterable

from diastole.server.wire.sessions import Session

UNHEARD = 32
"""Devices that have been told and have not called yet, while others wait to be told."""

LOOK_SECONDS, LOOKS = 0.01, 25
"""A device that is not heard of for so many looks is not waited for. If all is slow, looks are too."""

TURN = 8
"""Devices that are told, or passed over, before others are answered."""


async def tell(
    devices: Iterable[str], give: Callable[[str], Session | None], crowded: Callable[[], bool] = lambda: False
) -> None:
    """Let `give` tell each device of its task; it returns the session of one that was told, or None.

    `crowded` returns whether devices that have called wait for their turn; nobody is told meanwhile, for a while.
    """
    unheard: list[tuple[Session, float, int]] = []
    for number, device in enumerate(devices):
        if number % TURN == 0:
            await asyncio.sleep(0)
        looks = LOOKS
        while len(unheard) >= UNHEARD or (looks and crowded()):
            await asyncio.sleep(LOOK_SECONDS)
            looks = max(0, looks - 1)
            unheard = [(each, seen, left - 1) for each, seen, left in unheard if left and each.seen == seen]
        session = give(device)
        if session is not None:
            unheard.append((session, session.seen, LOOKS))
