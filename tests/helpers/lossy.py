"""Codecs of somebody else's package."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.proto.codecs.packing import inflated
from diastole.proto.payload import decode, encode


@dataclass(frozen=True)
class Half:
    """Numbers of 16 bits in the place of 32."""

    name: str = "half"
    exact: bool = False
    feedback: bool = False

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        return encode({name: t.half() if t.dtype == torch.float32 else t for name, t in state.items()})

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.float() if t.dtype == torch.float16 else t for name, t in decode(data).items()}

    def payload_bytes(self, shapes: Sequence[Sequence[int]], plain: int) -> int:
        return plain


@dataclass(frozen=True)
class Packed:
    """Every bit, but not as safetensors."""

    name: str = "packed"
    exact: bool = True
    feedback: bool = False

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        return zlib.compress(encode(state))

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return decode(inflated(data, like, self.name))

    def payload_bytes(self, shapes: Sequence[Sequence[int]], plain: int) -> int:
        return plain


HALF, PACKED = Half(), Packed()
