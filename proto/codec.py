"""Codecs: how the tensors of a payload are encoded on the way, in both directions.

One of the three places where a round can be changed. A codec loses the same precision in a simulation as over gRPC, so
that both give the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from diastole.proto.codecs.packing import Shapes
from diastole.proto.payload import Bytes, PayloadError, decode, encode
from diastole.proto.registry import Registry

LONGEST_NAME = 64


@runtime_checkable
class Codec(Protocol):
    """One way of encoding a payload; a device is told its `name`."""

    @property
    def name(self) -> str:
        """The codec's name, and behind a colon its option, if it has one."""
        ...

    @property
    def exact(self) -> bool:
        """Whether decoding gives every tensor back to the bit."""
        ...

    @property
    def feedback(self) -> bool:
        """Whether what it leaves out is added to what is encoded next; it then encodes changes only."""
        ...

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        """Return tensors of floating-point numbers as bytes; the same tensors and seed give the same bytes."""
        ...

    def decode(self, data: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors. Raises `PayloadError`.

        `like` has the names, shapes and types that were encoded. What comes out is compared with it, and refused if it
        is anything else; but a codec that inflates bytes must stop by itself where `like` ends.
        """
        ...

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of a payload, or a close bound, given the tensors' shapes and their safetensors' bytes."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """A codec with an option, which stands behind its name: "top-k:0.1"."""

    def tuned(self, option: str) -> Codec:
        """Return the codec with another option. Raises `PayloadError`."""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """Safetensors bytes as they are."""

    name: str = "exact"
    exact: bool = True
    feedback: bool = False

    def encode(self, state: Mapping[str, Tensor], seed: int) -> bytes:
        """Return the tensors as safetensors bytes."""
        return encode(state)

    def decode(self, data: Bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors in safetensors bytes; see `payload.decode`. Raises `PayloadError`."""
        return decode(data)

    def payload_bytes(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of the safetensors."""
        return plain


EXACT = Exact()
_HERE = "diastole.proto.codecs"
CODECS: Registry[Codec] = Registry(
    "codec",
    {
        "exact": "diastole.proto.codec:EXACT",
        "fp16": f"{_HERE}.floats:FP16",
        "bf16": f"{_HERE}.floats:BF16",
        "int8": f"{_HERE}.integers:INT8",
        "int4": f"{_HERE}.integers:INT4",
        "top-k": f"{_HERE}.topk:TOPK",
    },
    Codec,
    PayloadError,
)


def find(text: str) -> Codec:
    """Return the codec of a name, with an option behind a colon if it has one. Raises `PayloadError`."""
    if len(text) > LONGEST_NAME:
        raise PayloadError(f"a codec's name of {len(text)} characters; at most {LONGEST_NAME} are accepted")
    name, colon, option = text.partition(":")
    found = CODECS[name]
    if not colon:
        return found
    if not isinstance(found, Tunable):
        raise PayloadError(f"codec {name!r} has no option, not {option!r}")
    return found.tuned(option)
