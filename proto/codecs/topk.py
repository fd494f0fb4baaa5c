"""Only the largest changes; what is left out is added to the next ones (Seide et al. 2014; Stich et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Self

import numpy as np
import torch
from torch import Tensor

from diastole.proto.codecs.packing import Parts, Shapes, container_bytes, count, flat, pack, shapes_of, unflat, unpack
from diastole.proto.payload import PayloadError

INDEX_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopK:
    """The `share` of all numbers with the largest magnitudes, as bfloat16, and where they are.

    Where they are is a bit for each number or, if that is shorter, an int32 for each that is sent. Of equal magnitudes
    the first ones are sent.
    """

    name: str = "top-k"
    share: float = 0.1
    exact: bool = False
    feedback: bool = True

    def tuned(self, option: str) -> Self:
        """Return the codec with a share of its own, above 0 and at most 1. Raises `PayloadError`."""
        try:
            share = float(option)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise PayloadError(f"codec top-k: the share must be above 0 and at most 1, not {option[:100]!r}")
        return replace(self, name=f"top-k:{share:g}", share=float(f"{share:g}"))

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        """Return the tensors as bytes."""
        numbers = flat(state)
        size, many = len(numbers), self._many(len(numbers))
        chosen = torch.zeros(size, dtype=torch.bool)
        if many:
            sizes = numbers.abs().nan_to_num(torch.inf, torch.inf)
            least = sizes.kthvalue(size - many + 1).values
            chosen = sizes > least
            chosen[(sizes == least).nonzero()[: many - int(chosen.sum()), 0]] = True
        where = chosen.nonzero()[:, 0].to(torch.int32)
        if self._bitwise(size):
            where = torch.from_numpy(np.packbits(chosen.numpy(), bitorder="little"))
        return pack({"where": where, "values": numbers[chosen].to(torch.bfloat16)})

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors; what was left out is zero. Raises `PayloadError`."""
        shapes = shapes_of(like)
        found, size = unpack(data, self._parts(shapes), self.name), count(shapes)
        values, where = found["values"].float(), found["where"]
        if not bool(values.isfinite().all()):
            raise PayloadError(f"codec {self.name}: values must be finite")
        if self._bitwise(size):
            bits = np.unpackbits(where.numpy(), bitorder="little")
            if bits[size:].any() or int(bits.sum()) != len(values):
                raise PayloadError(f"codec {self.name}: {int(bits.sum())} places for {len(values)} values")
            where = torch.from_numpy(bits[:size].nonzero()[0])
        elif len(where) and not (int(where[0]) >= 0 and int(where[-1]) < size and bool((where.diff() > 0).all())):
            raise PayloadError(f"codec {self.name}: places must be rising, from 0 to {size - 1}")
        numbers = torch.zeros(size)
        numbers[where.long()] = values
        return unflat(numbers, like)

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of a payload."""
        return container_bytes(self._parts(shapes))

    def _parts(self, shapes: Shapes) -> Parts:
        size = count(shapes)
        where = (torch.uint8, -(-size // 8)) if self._bitwise(size) else (torch.int32, self._many(size))
        return {"where": where, "values": (torch.bfloat16, self._many(size))}

    def _many(self, size: int) -> int:
        return ceil(self.share * size)

    def _bitwise(self, size: int) -> bool:
        return -(-size // 8) <= INDEX_BYTES * self._many(size)


TOPK = TopK()
