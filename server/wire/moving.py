"""The transfers that are under way in an open round, for whoever looks."""

from collections.abc import Mapping

from diastole.server.link import Traffic
from diastole.server.progress import Moving
from diastole.server.wire.board import LiveRun
from diastole.server.wire.sessions import Session

NOTHING = Traffic()


def moving(run: LiveRun, sessions: Mapping[str, Session], before: Mapping[str, Traffic]) -> dict[str, Moving]:
    """Return the transfer of each device that is at one; `before` is what had been moved before the round.

    Of a device that can do with less than its whole sub-model, nobody can tell how much is left to download.
    """
    owed, uploads = run.exchange.standing()
    found = dict[str, Moving]()
    for order in owed:
        device, session = order.task.device, sessions.get(order.task.device)
        if (upload := uploads.get(order.task.task_id)) is not None:
            found[device] = Moving(upload.received, upload.size)
        elif session is not None and not order.steps:
            moved, whole = session.moved.get(run.run_id, NOTHING).bytes_down, len(order.payload.data)
            done = moved - before.get(device, NOTHING).bytes_down
            if 0 < done < whole:
                found[device] = Moving(done, whole)
    return found
