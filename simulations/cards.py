"""`[simulation] device`: "cpu", or the cards that a simulation trains on."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from diastole.experiments.errors import ExperimentError
from diastole.models.training import Examples

if TYPE_CHECKING:
    from diastole.simulations.devices import Device

_CARD = re.compile(r"([a-z]+)(?::(\d{1,3}))?")

ACCEPTED = '"cpu", "cuda", "cuda:1", "mps", or several such as "cuda:0,cuda:1"'


def known(text: str) -> str:
    """Return what names devices, without spaces. Raises `ValueError`, for pydantic, if it names none."""
    names = "".join(text.split())
    try:
        found = _parsed(names)
    except (ValueError, RuntimeError):
        raise ValueError(f"device {text!r}: {ACCEPTED} are accepted") from None
    if len(set(found)) < len(found):
        raise ValueError(f"device {text!r}: each card once")
    if len({device.type for device in found}) > 1 or (len(found) > 1 and found[0].type == "cpu"):
        raise ValueError(f"device {text!r}: several cards must be of one kind, such as cuda:0,cuda:1")
    return names


def is_card(text: str) -> bool:
    """Return whether a simulation with this device trains on cards."""
    return text != "cpu"


def several(text: str) -> bool:
    """Return whether more than one card is named."""
    return "," in text


def devices(text: str) -> tuple[torch.device, ...]:
    """Return the torch devices that are named: the CPU, or cards with their numbers.

    Raises `ExperimentError` for a card that is not there.
    """
    found = _parsed(text)
    for device in found:
        if device.type != "cpu" and _count(device.type) <= (device.index or 0):
            raise ExperimentError(f'device "{text}": {_lacking(device)}; use "cpu"')
    return found


def home(text: str) -> torch.device:
    """Return where the server's own work is done: the first card, or the CPU for a card that has no float64.

    Raises what `devices` raises.
    """
    first = devices(text)[0]
    return torch.device("cpu") if first.type == "mps" else first


def moved(devices: "Mapping[str, Device]", device: torch.device) -> dict[str, Examples]:
    """Return the examples of every simulated device, by its name, on a card."""
    return {name: item.examples.on(device) for name, item in devices.items()}


def _parsed(names: str) -> tuple[torch.device, ...]:
    """Return the devices of names without spaces. Raises `ValueError` or, from torch, `RuntimeError`."""
    found = list[torch.device]()
    for name in names.split(","):
        match = _CARD.fullmatch(name)
        if match is None or (match[1] == "cpu" and match[2]):
            raise ValueError(name)
        if match[1] == "cpu":
            found.append(torch.device("cpu"))
            continue
        torch.get_device_module(match[1])
        # With its number, as tensors that are there have it.
        found.append(torch.device(match[1], int(match[2] or 0)))
    return tuple(found)


def _count(kind: str) -> int:
    """Return how many cards of a kind there are."""
    module = torch.get_device_module(kind)
    return int(module.device_count()) if module.is_available() else 0


def _lacking(device: torch.device) -> str:
    count = _count(device.type)
    if count:
        return f"this machine has {count} of that kind"
    return "this machine, or this build of torch, has no GPU" if device.type != "mps" else "this machine has no MPS"
