"""How a coordinator stands at this moment: runs, devices, transfers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diastole.server.observe.metrics import Standing
from diastole.server.wire.hub import Hub
from diastole.server.wire.listed import ListedRun
from diastole.server.wire.sessions import Session

SHORT = {"waiting": "running", "finished": "over", "stopped": "over"}
STATES = ("idle", "training", "paused", "awaited", "lost", "left")


def standing(hub: Hub, runs: Sequence[ListedRun], folder: Path, expiry: float | None = None) -> Standing:
    """Look at a coordinator; may be called from any thread.

    Args:
        hub: serves its devices.
        runs: of its queue.
        folder: its state.
        expiry: when its authority ends to count, in seconds since 1970; None without one.

    """
    runs, links = list(runs), [run.link for run in list(runs) if run.link is not None]
    tiers = {name for link in links if (found := link.tiers) is not None for name in found.names}
    devices = Counter[tuple[str, str]]()
    for session in hub.sessions.all().values():
        training = session.alive and any(link.owes(session.name) for link in links)
        tier = session.profile.tier
        # Devices may say what they like; tiers are those of the runs.
        devices[state_of(session, training=training), tier if tier in tiers else "other"] += 1
    transfers = hub.transfers
    lines = {"down": transfers.down, "up": transfers.up}
    return Standing(
        runs=Counter(
            dict.fromkeys(("queued", "held", "running", "paused", "over"), 0)
            | Counter(SHORT.get(run.standing, run.standing) for run in runs)
        ),
        devices=devices,
        connections=len(hub.sessions.ready()),
        transfers={name: (line.moving, line.waiting) for name, line in lines.items()},
        stalled=transfers.stalled,
        unstored=transfers.unstored,
        expiry=expiry,
        folder=folder,
    )


def state_of(session: Session, *, training: bool) -> str:
    """Return what a device is doing, in one of `STATES`."""
    if not session.alive:
        return "left" if session.left else "lost"
    if session.expected:
        return "awaited"
    return "paused" if session.paused else "training" if training else "idle"
