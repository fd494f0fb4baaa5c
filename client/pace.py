"""How fast this device's link is, by the transfers that it makes anyway."""

import json
from math import inf
from statistics import median

from diastole.client.statefolder import StateFolder
from diastole.proto.jsontext import from_json

LEAST_BYTES = 1 << 16
"""Of a transfer that says something of a link; shorter ones take the time of a call."""

NEWEST = 9
"""Transfers of each direction of which the median counts: some are disturbed, and a device moves."""

FILE = "link"


class Pace:
    """The speeds of the newest transfers, kept in a folder for the next start."""

    def __init__(self, folder: StateFolder | None = None) -> None:
        """Go on with what an earlier start has measured, as far as it can be read."""
        self._folder = folder
        self._speeds: dict[str, list[float]] = {"down": [], "up": []}
        try:
            found = from_json((folder and folder.read(FILE)) or b"{}")
            for way, speeds in self._speeds.items():
                speeds += [float(speed) for speed in found.get(way, []) if 0 < float(speed) < inf][-NEWEST:]
        except (ValueError, TypeError, AttributeError):
            # Damaged; the next transfers are measured.
            return

    @property
    def down(self) -> float | None:
        """Bytes a second of a download; None if none has been measured."""
        return median(self._speeds["down"]) if self._speeds["down"] else None

    @property
    def up(self) -> float | None:
        """Bytes a second of an upload; None if none has been measured."""
        return median(self._speeds["up"]) if self._speeds["up"] else None

    def moved(self, way: str, size: int, seconds: float) -> None:
        """Learn of a transfer, "down" or "up", of `size` bytes in one go."""
        if size < LEAST_BYTES or seconds <= 0:
            return
        self._speeds[way] = [*self._speeds[way], size / seconds][-NEWEST:]
        if self._folder is not None:
            self._folder.write(FILE, json.dumps(self._speeds).encode())
