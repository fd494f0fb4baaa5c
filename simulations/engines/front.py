"""What the links in front of an engine share."""

from collections.abc import Mapping
from typing import Any

from diastole.models.networks.config import ModelConfig
from diastole.models.state import State
from diastole.proto.profile import Profile
from diastole.server.link import Link, Traffic
from diastole.simulations.engines.base import SimulatedLink


class FrontLink(SimulatedLink):
    """A link in front of another one, which counts bytes and remembers; a subclass changes what is dispatched."""

    def __init__(self, inner: Link, model: ModelConfig, profiles: Mapping[str, Profile] | None = None) -> None:
        """Stand in front of `inner`, whose devices say that they are `profiles`, if that is not what they are."""
        super().__init__(inner.devices() if profiles is None else profiles, model)
        self._inner = inner

    def interrupt(self) -> None:
        """End the dispatch that is going on."""
        super().interrupt()
        self._inner.interrupt()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes that the engine has counted."""
        return self._inner.traffic()

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what the engine remembers, as JSON and tensors."""
        return self._inner.memory() if isinstance(self._inner, SimulatedLink) else ({}, {})

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another link's `memory()`."""
        if isinstance(self._inner, SimulatedLink):
            self._inner.resume(memory, tensors)
