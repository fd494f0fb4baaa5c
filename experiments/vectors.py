"""Whether sub-models fill the vectors of the processors that train them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.proto.profile import Profile
from diastole.server.events import DeviceJoined, Event

LOG = logging.getLogger(__name__)


def ragged(model: ModelConfig, specs: Sequence[SubModelSpec], block: int) -> list[SubModelSpec]:
    """Return the sub-models of which `[model] block = block` would make others, whose channels fill vectors."""
    if not block or model.block % block == 0 < model.block:
        return []
    return [spec for spec in specs if _shapes(model, spec) != _shapes(replace(model, block=block), spec)]


class Vectors:
    """An observer that warns once if a device joins whose vectors the run's sub-models do not fill."""

    def __init__(
        self, model: ModelConfig, specs: Sequence[SubModelSpec], devices: Callable[[], Mapping[str, Profile]]
    ) -> None:
        """Watch for devices.

        Args:
            model: the global model.
            specs: of every size.
            devices: returns the profiles of the devices that are online.

        """
        self._model, self._specs, self._devices, self._seen = model, tuple(specs), devices, set[int]()
        self._told = False

    def __call__(self, event: Event) -> None:
        """Look at a device that joins."""
        if self._told or not isinstance(event, DeviceJoined):
            return
        profile = self._devices().get(event.device)
        block = profile.simd_block if profile else 0
        if block in self._seen:
            return
        self._seen.add(block)
        found = ragged(self._model, self._specs, block)
        if found:
            self._told = True
            LOG.warning(
                "%s computes in vectors of %d floats, which the channels of %s do not fill; "
                "with [model] block = %d they would, and training would take less time",
                event.device,
                block,
                ", ".join(spec.label for spec in found),
                block,
            )


def _shapes(model: ModelConfig, spec: SubModelSpec) -> list[tuple[int, ...]]:
    """Return the shapes of a sub-model's parameters; none if there is no such sub-model."""
    try:
        with hollow():
            return [tuple(parameter.shape) for parameter in build(model, spec).parameters()]
    except Exception:  # noqa: BLE001 (a user's own module may raise anything)
        return []
