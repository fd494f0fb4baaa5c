"""Codecs: how the tensors of a payload are encoded on the way, in both directions.

One of the three places where a round can be changed. A codec loses the same precision in a simulation as over gRPC, so
that both give the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from diastole.proto.payload import PayloadError, decode, encode
from diastole.proto.registry import Registry


@runtime_checkable
class Codec(Protocol):
    """One way of encoding a payload; a device is told its `name`."""

    @property
    def name(self) -> str:
        """The codec's name."""
        ...

    @property
    def exact(self) -> bool:
        """Whether decoding gives every tensor back to the bit."""
        ...

    def encode(self, state: Mapping[str, Tensor]) -> bytes:
        """Return the tensors as bytes; equal tensors give equal bytes."""
        ...

    def decode(self, data: bytes) -> dict[str, Tensor]:
        """Return the tensors, with the names, shapes and dtypes that were encoded. Raises `PayloadError`."""
        ...

    def payload_bytes(self, tensor_bytes: int, header_bytes: int) -> int:
        """Return the bytes of a payload, given those of its tensors and of a safetensors header for them."""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """Safetensors bytes as they are."""

    name: str = "exact"
    exact: bool = True

    def encode(self, state: Mapping[str, Tensor]) -> bytes:
        """Return the tensors as safetensors bytes."""
        return encode(state)

    def decode(self, data: bytes) -> dict[str, Tensor]:
        """Return the tensors in safetensors bytes. Raises `PayloadError`."""
        return decode(data)

    def payload_bytes(self, tensor_bytes: int, header_bytes: int) -> int:
        """Return the sum of both."""
        return tensor_bytes + header_bytes


EXACT = Exact()


def carried(codec: Codec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they arrive at the other end."""
    return state if codec.exact else codec.decode(codec.encode(state))


CODECS: Registry[Codec] = Registry("codec", {"exact": "diastole.proto.codec:EXACT"}, Codec, PayloadError)
