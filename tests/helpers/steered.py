"""What operators do with a run that is in no queue: they stop it, and pause it for this process."""

from diastole.proto.errors import DiastoleError
from diastole.server.coordinator import Coordinator


class Steered:
    """A `Control` of a coordinator, which keeps no checkpoints."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    @property
    def held(self) -> bool:
        return self._coordinator.rest.asked

    def stop(self, now: bool) -> None:
        self._coordinator.stop(now=now)

    def pause(self) -> None:
        self._coordinator.rest.pause()

    def proceed(self) -> None:
        self._coordinator.rest.resume()

    def roll_back(self, number: int) -> None:
        raise DiastoleError(f"of round {number} no checkpoint is kept; rounds that have one: none")

    def model(self, number: int) -> bytes:
        raise DiastoleError(f"of round {number} no checkpoint is kept; rounds that have one: none")
