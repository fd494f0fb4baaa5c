"""Numbers of 16 bits: half the bytes of float32, rounded to the nearest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.proto.codecs.packing import Parts, Shapes, container_bytes, count, flat, pack, shapes_of, unflat, unpack


@dataclass(frozen=True, slots=True)
class Floats:
    """Every number as a float of 16 bits.

    "fp16" keeps 11 significant bits of numbers between 6e-5 and 65504, which is the largest that it sends; "bf16" keeps
    8 bits of whatever float32 can hold.
    """

    name: str
    dtype: torch.dtype
    exact: bool = False
    feedback: bool = False

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        """Return the tensors as bytes."""
        numbers, most = flat(state), torch.finfo(self.dtype).max
        if most < torch.finfo(torch.float32).max / 2:
            numbers = torch.where(numbers.isfinite(), numbers.clamp(-most, most), numbers)
        return pack({"values": numbers.to(self.dtype)})

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors. Raises `PayloadError`."""
        found = unpack(data, self._parts(shapes_of(like)), self.name)
        return unflat(found["values"].float(), like)

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of a payload."""
        return container_bytes(self._parts(shapes))

    def _parts(self, shapes: Shapes) -> Parts:
        return {"values": (self.dtype, count(shapes))}


FP16, BF16 = Floats("fp16", torch.float16), Floats("bf16", torch.bfloat16)
