"""Tensors on the wire: safetensors bytes, known by their digest, in chunks."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import Tensor

from diastole.proto.errors import DiastoleError
from diastole.proto.tensors import views, write
from diastole.v1 import common_pb2

CHUNK_BYTES = 1 << 19
FIRST_CHUNK = 1 << 14
QUICK_SECONDS, SLOW_SECONDS = 0.25, 1.0

Bytes = bytes | memoryview
"""Bytes of an object; a view is of memory that nobody writes to any more."""


class PayloadError(DiastoleError):
    """Bytes that are not the tensors they should be."""


@dataclass(frozen=True, slots=True)
class Payload:
    """An immutable byte string and its SHA-256 in hexadecimal."""

    data: Bytes
    sha256: str

    @staticmethod
    def of(data: Bytes) -> "Payload":
        """Return `data` with its digest."""
        return Payload(data, hashlib.sha256(data).hexdigest())

    def ref(self) -> common_pb2.ObjectRef:
        """Return the payload's name on the wire."""
        return common_pb2.ObjectRef(sha256=self.sha256, size=len(self.data))

    def chunks(self, offset: int = 0, clock: Callable[[], float] = time.monotonic) -> Iterator[memoryview]:
        """Yield the bytes from `offset` on, at most `CHUNK_BYTES` at a time.

        The first pieces are small, and so is every piece on a slow way: a transfer that is cut again and again gets on
        all the same, and one that stands still holds little memory. `clock` tells how long a piece takes, in seconds.
        """
        size, view = FIRST_CHUNK, memoryview(self.data)
        while offset < len(self.data):
            began = clock()
            yield view[offset : offset + size]
            offset, took = offset + size, clock() - began
            if took < QUICK_SECONDS:
                size = min(2 * size, CHUNK_BYTES)
            elif took > SLOW_SECONDS:
                size = max(size // 2, FIRST_CHUNK)


def encode(state: Mapping[str, Tensor]) -> bytes:
    """Return the tensors as safetensors bytes; equal tensors give equal bytes."""
    return write({name: tensor.detach().contiguous() for name, tensor in state.items()})


def decode(data: Bytes) -> dict[str, Tensor]:
    """Return the tensors in safetensors bytes. Raises `PayloadError` if they are anything else.

    Those of a view share its memory, and must stay as they are; those of `bytes` are copies.
    """
    return _tensors(lambda: views(data) if isinstance(data, memoryview) else tensors.load(data), len(data))


def load(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, memory-mapped: they stay in the file until they are read.

    The file may be removed at once. Raises `PayloadError` if it is any other file.
    """
    return _tensors(lambda: tensors.load_file(path), path.stat().st_size)


def _tensors(read: Callable[[], dict[str, Tensor]], size: int) -> dict[str, Tensor]:
    try:
        return read()
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        # The text may quote the sender; quoting it again keeps it on one line.
        raise PayloadError(f"payload of {size} bytes is not safetensors: {str(error)[:200]!r}") from None
