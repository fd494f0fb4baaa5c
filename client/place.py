"""Where a device trains: its processor, or an accelerator."""

import torch

from diastole.client.choices import PlaceName
from diastole.client.errors import PlaceError


def place_of(name: PlaceName) -> torch.device:
    """Return the torch device of a name. Raises `PlaceError` for one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [each for each, is_there in there.items() if is_there]
    if name == "auto":
        return torch.device(found[0])
    if name not in found:
        raise PlaceError(f"device {name!r} is not there; there are {', '.join(['auto', *found])}")
    return torch.device(name)
