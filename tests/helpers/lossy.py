"""Codecs of somebody else's package."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.proto.payload import PayloadError, decode, encode


@dataclass(frozen=True)
class Half:
    """Numbers of 16 bits in the place of 32."""

    name: str = "half"
    exact: bool = False

    def encode(self, state: Mapping[str, Tensor]) -> bytes:
        return encode({name: t.half() if t.dtype == torch.float32 else t for name, t in state.items()})

    def decode(self, data: bytes) -> dict[str, Tensor]:
        return {name: t.float() if t.dtype == torch.float16 else t for name, t in decode(data).items()}

    def payload_bytes(self, tensor_bytes: int, header_bytes: int) -> int:
        return tensor_bytes // 2 + header_bytes


@dataclass(frozen=True)
class Packed:
    """Every bit, but not as safetensors."""

    name: str = "packed"
    exact: bool = True

    def encode(self, state: Mapping[str, Tensor]) -> bytes:
        return zlib.compress(encode(state))

    def decode(self, data: bytes) -> dict[str, Tensor]:
        try:
            return decode(zlib.decompress(data))
        except zlib.error as error:
            raise PayloadError(f"not packed: {error}") from None

    def payload_bytes(self, tensor_bytes: int, header_bytes: int) -> int:
        return tensor_bytes + header_bytes


HALF, PACKED = Half(), Packed()
