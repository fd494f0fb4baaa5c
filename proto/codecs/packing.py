"""Packed payloads: the numbers of all tensors one behind another, in a safetensors container of few parts.

Both ends know the names and shapes of a sub-model's tensors, so they do not travel. Whoever decodes knows every part's
type and length, and the length of the whole, before it looks at a byte: nothing that is sent can make it allocate more.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from diastole.proto.payload import Bytes, PayloadError, decode, encode

Shapes = Sequence[Sequence[int]]
"""The shapes of tensors."""

Parts = Mapping[str, tuple[torch.dtype, int]]
"""The parts of a container by name: type and count of numbers."""

ALIGNMENT = 8
HEADER, ENTRY = 1024, 256
"""Bytes of safetensors beside their values, at most, and for each tensor beside its name."""
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def shapes_of(state: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of tensors, in the order of their names."""
    return [tuple(state[name].shape) for name in sorted(state)]


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """Return all numbers as float32 `[n]`, in the order of the tensors' names."""
    tensors = [state[name].detach().reshape(-1).to(torch.float32) for name in sorted(state)]
    return torch.cat(tensors) if tensors else torch.empty(0)


def unflat(numbers: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return numbers `[n]` as tensors with the names, shapes and types of others; what `flat` undoes."""
    found, start = dict[str, Tensor](), 0
    for name in sorted(like):
        tensor = like[name]
        found[name] = numbers[start : start + tensor.numel()].view(tensor.shape).to(tensor.dtype, copy=True)
        start += tensor.numel()
    # Whoever adds tensors up meets them in the order of those that they are added to.
    return {name: found[name] for name in like}


def pack(parts: Mapping[str, Tensor]) -> bytes:
    """Return the parts as safetensors bytes."""
    return encode(parts)


def unpack(data: bytes, parts: Parts, codec: str) -> dict[str, Tensor]:
    """Return the parts of a container. Raises `PayloadError` if it has others, or any number more or less."""
    size = container_bytes(parts)
    if len(data) != size:
        raise PayloadError(f"codec {codec}: payload of {len(data)} bytes; these tensors take {size}")
    found = decode(data)
    for name, (dtype, count) in parts.items():
        if name not in found:
            raise PayloadError(f"codec {codec}: part {name!r} is missing")
        if found[name].dtype != dtype or found[name].shape != (count,):
            kind = f"{found[name].dtype} {list(found[name].shape)}"
            raise PayloadError(f"codec {codec}: part {name!r} is {kind}; expected {dtype} [{count}]")
    if len(found) > len(parts):
        raise PayloadError(f"codec {codec}: {len(found)} parts; expected {', '.join(parts)}")
    return found


def inflated(data: Bytes, like: Mapping[str, Tensor], codec: str) -> bytes:
    """Return the safetensors that zlib has deflated to some bytes; for codecs of other packages.

    It stops where tensors with the names, shapes and types of `like` end. Raises `PayloadError` for what is longer, is
    cut short, or is nothing of zlib's.
    """
    most = sum(tensor.nbytes for tensor in like.values()) + HEADER + sum(ENTRY + len(name) for name in like)
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, most)
    except zlib.error as error:
        raise PayloadError(f"codec {codec}: {error}") from None
    if not inflater.eof:
        raise PayloadError(f"codec {codec}: payload is cut short, or inflates to more than {most} bytes")
    return found


def container_bytes(parts: Parts) -> int:
    """Return the bytes of a container with these parts."""
    described, start = {}, 0
    # safetensors puts wider types first.
    for name, (dtype, count) in sorted(parts.items(), key=lambda part: (-part[1][0].itemsize, part[0])):
        end = start + count * dtype.itemsize
        described[name] = {"dtype": _NAMES[dtype], "shape": [count], "data_offsets": [start, end]}
        start = end
    header = len(json.dumps(described, separators=(",", ":")))
    return 8 + -(-header // ALIGNMENT) * ALIGNMENT + start


def count(shapes: Shapes) -> int:
    """Return how many numbers there are in tensors of these shapes."""
    return sum(map(prod, shapes))
