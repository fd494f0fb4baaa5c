"""Bytes that simulated devices would have moved."""

from collections.abc import Iterable, Mapping

from diastole.models.spec import SubModelSpec
from diastole.proto.payload import encode
from diastole.server.link import Task, Traffic


class TrafficCounter:
    """Counts, for each device, the payload bytes that the gRPC link would have moved for its finished tasks."""

    def __init__(self, devices: Iterable[str]) -> None:
        self._totals = {name: Traffic() for name in devices}
        self._payload_bytes: dict[SubModelSpec, int] = {}

    def count(self, task: Task) -> None:
        """Count one task: its sub-model down, and a state of the same size up."""
        if task.spec not in self._payload_bytes:
            self._payload_bytes[task.spec] = len(encode(task.state))
        size, before = self._payload_bytes[task.spec], self._totals[task.device]
        self._totals[task.device] = Traffic(before.down + size, before.up + size)

    def totals(self) -> Mapping[str, Traffic]:
        """Return the totals so far."""
        return dict(self._totals)
