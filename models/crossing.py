"""Between the processor and a card: every transfer goes through here, so that none happens by accident.

A card is any torch device but the CPU. The processor waits whenever a number is read from a card, so whoever needs
several fetches them at once. On the CPU nothing here copies or costs anything.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Crossing(threading.local):
    """Whether this thread is transferring on purpose, and how often it has: `fetched` down, `sent` up."""

    inside = False
    fetched = 0
    sent = 0


crossing = Crossing()
"""Of this thread; a watch over a card's operators asks it."""


@contextmanager
def on_purpose() -> Iterator[None]:
    """Let the block read from cards and write to them, by operators of its own."""
    before, crossing.inside = crossing.inside, True
    try:
        yield
    finally:
        crossing.inside = before


def on_card(*tensors: Tensor) -> bool:
    """Return whether any of the tensors is on a card."""
    return any(not tensor.is_cpu for tensor in tensors)


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the values of small tensors on the CPU, in one transfer; those of a card as float64.

    All are on one device. Float32 values, and whole numbers below 2^53, are exact in float64.
    """
    if not on_card(*tensors):
        return list(tensors)
    block = torch.cat([tensor.detach().reshape(-1).to(_widest(tensor.device)) for tensor in tensors])
    with on_purpose():
        crossing.fetched += 1
        values = block.cpu().double()
    parts = torch.split(values, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _widest(device: torch.device) -> torch.dtype:
    """Return the type in which numbers are added up and fetched; MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def numbers(tensors: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors without axes, in one transfer."""
    return [tensor.item() for tensor in fetch(tensors)]


def number(tensor: Tensor) -> float:
    """Return the value of a tensor of one element."""
    return numbers([tensor])[0]


def counted(tensor: Tensor) -> float | Tensor:
    """Return a scalar to be added up: a number, or on a card a float64 tensor, because reading it would wait."""
    return tensor.item() if tensor.is_cpu else tensor.detach().to(_widest(tensor.device))


def chosen(mask: Tensor) -> Tensor:
    """Return where a mask `[n]` is true, int64 `[m]`, on its device; the processor waits for a card to count them."""
    if mask.is_cpu:
        return mask.nonzero().flatten()
    with on_purpose():
        crossing.fetched += 1
        return mask.nonzero().flatten()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device: itself if it is there."""
    if tensor.device == device:
        return tensor
    with on_purpose():
        crossing.sent += not tensor.is_meta and device.type != "cpu"
        crossing.fetched += device.type == "cpu"
        return tensor.to(device)


def send_all(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors by name on a device; each is itself if it is there."""
    return {name: send(tensor, device) for name, tensor in state.items()}


def device_of(state: Mapping[str, Tensor]) -> torch.device:
    """Return where the tensors of a state are; a state without any is on the CPU."""
    return next((tensor.device for tensor in state.values()), CPU)
