"""Whole numbers of 8 or 4 bits with a scale for each output channel, rounded up or down at random.

Rounding is unbiased: the mean over draws is the number itself (Alistarh et al. 2017, QSGD, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from diastole.proto.codecs.packing import Parts, Shapes, container_bytes, count, pack, shapes_of, unpack
from diastole.proto.payload import PayloadError

SHORTEST = 8
"""Numbers of a channel below which a scale of its own is not worth its four bytes."""


def by_channel(shape: Sequence[int]) -> bool:
    """Return whether a tensor's numbers are rounded; those of biases and norms, which are few, stay float32."""
    return len(shape) > 1 and shape[0] > 0 and prod(shape[1:]) >= SHORTEST


@dataclass(frozen=True, slots=True)
class Integers:
    """Every number of a channel as a multiple of the channel's scale, from `-most` to `most`.

    A tensor `[out, ...]` has `out` channels; the scale of each is its largest magnitude divided by `most`.
    """

    name: str
    bits: int
    exact: bool = False
    feedback: bool = False

    @property
    def most(self) -> int:
        """The largest multiple."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        """Return the tensors as bytes, rounded by draws from `seed`."""
        draws = torch.Generator().manual_seed(seed)
        values, scales, plain = [], [], []
        for name in sorted(state):
            tensor = state[name].detach().to(torch.float32)
            if not by_channel(tensor.shape):
                plain.append(tensor.reshape(-1))
                continue
            rows = tensor.reshape(len(tensor), -1)
            scale = rows.abs().amax(1) / self.most
            # A channel without a scale is zero; one that is not finite is refused where it arrives.
            ratio = (rows / scale[:, None]).nan_to_num_(0.0, 0.0, 0.0)
            ratio.add_(torch.rand(rows.shape, generator=draws)).floor_().clamp_(-self.most, self.most)
            values.append(ratio.to(torch.int8).reshape(-1))
            scales.append(scale)
        whole = torch.cat(values) if values else torch.empty(0, dtype=torch.int8)
        parts = {"values": _halved(whole) if self.bits == 4 else whole}
        parts |= {name: torch.cat(t) if t else torch.empty(0) for name, t in (("scales", scales), ("plain", plain))}
        return pack(parts)

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors. Raises `PayloadError`."""
        shapes = shapes_of(like)
        found = unpack(data, self._parts(shapes), self.name)
        values, scales, plain = found["values"], found["scales"], found["plain"]
        if self.bits == 4:
            values = self._doubled(values, sum(prod(shape) for shape in shapes if by_channel(shape)))
        if values.numel() and int(values.min()) < -self.most:
            raise PayloadError(f"codec {self.name}: a value of {int(values.min())}; the smallest is {-self.most}")
        if not bool((scales.ge(0) & (scales * self.most).isfinite()).all()):
            raise PayloadError(f"codec {self.name}: scales must be finite and at least 0")
        state, taken = dict[str, Tensor](), [0, 0, 0]
        for name in sorted(like):
            tensor = like[name]
            size, rows = tensor.numel(), len(tensor) if by_channel(tensor.shape) else 0
            if rows:
                mine = values[taken[0] : taken[0] + size].to(torch.float32).view(rows, -1)
                numbers = mine.mul_(scales[taken[1] : taken[1] + rows, None]).to(tensor.dtype)
                taken[0], taken[1] = taken[0] + size, taken[1] + rows
            else:
                numbers = plain[taken[2] : taken[2] + size].to(tensor.dtype, copy=True)
                taken[2] += size
            state[name] = numbers.reshape(tensor.shape)
        return {name: state[name] for name in like}

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of a payload."""
        return container_bytes(self._parts(shapes))

    def _parts(self, shapes: Shapes) -> Parts:
        rounded = [shape for shape in shapes if by_channel(shape)]
        values, rest = count(rounded), count(shapes) - count(rounded)
        kind = (torch.uint8, -(-values // 2)) if self.bits == 4 else (torch.int8, values)
        return {
            "values": kind,
            "scales": (torch.float32, sum(shape[0] for shape in rounded)),
            "plain": (torch.float32, rest),
        }

    def _doubled(self, packed: Tensor, size: int) -> Tensor:
        """Return numbers that were packed two to a byte."""
        whole = (torch.stack([packed & 15, packed >> 4], 1).view(-1).to(torch.int8) - 8)[: 2 * len(packed)]
        if size % 2 and int(whole[-1]):
            raise PayloadError(f"codec {self.name}: the last half of a byte is not a number, and must be 8")
        return whole[:size]


def _halved(values: Tensor) -> Tensor:
    """Return numbers from -7 to 7, two to a byte, the first in its lower half; each as 1 to 15, and 8 where none is."""
    even = torch.cat([values, values.new_zeros(len(values) % 2)])
    pairs = (even + 8).to(torch.uint8).view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


INT8, INT4 = Integers("int8", 8), Integers("int4", 4)
