"""Safetensors bytes, written and read with one copy less than by their library, or two.

The format: 8 bytes with the length of a header, little end first; the header, JSON with each tensor's `dtype`, `shape`
and `data_offsets`; the values, one tensor behind another without a gap (github.com/huggingface/safetensors, "Format").
What is written here is what the library writes, to the byte. What is read has to cover its bytes without a gap.
"""

import json
import sys
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from safetensors import torch as library
from torch import Tensor

from diastole.proto.jsontext import from_json

TYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""In the order in which tensors are written; of one type they are by name."""

LONGEST_HEADER = 100_000_000
RANKS = {dtype: rank for rank, dtype in enumerate(TYPES.values())}
WORDS = {dtype: word for word, dtype in TYPES.items()}


def write(state: Mapping[str, Tensor]) -> bytes:
    """Return contiguous tensors as safetensors."""
    if sys.byteorder != "little" or any(tensor.dtype not in RANKS for tensor in state.values()):
        return library.save(dict(state))
    header: dict[str, Any] = {}
    parts: list[bytes | memoryview] = []
    end = 0
    for name, tensor in sorted(state.items(), key=lambda item: (RANKS[item[1].dtype], item[0])):
        values = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        begin, end = end, end + len(values)
        header[name] = {"dtype": WORDS[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
        parts.append(values)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def views(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors in safetensors, whose memory is that of `data`. Raises `ValueError` if it is anything else."""
    size = int.from_bytes(data[:8], "little")
    values = data[8 + size :]
    if len(data) < 8 or size > min(LONGEST_HEADER, len(data) - 8):
        raise ValueError("the header ends beyond the bytes")
    header = from_json(data[8 : 8 + size].tobytes())
    if not all(isinstance(word, str) for word in header.pop("__metadata__", {}).values()):
        raise ValueError("metadata that is no text")
    end, found = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end_of) = TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, begin, end_of)):
            raise ValueError("a size is no count")
        if begin != end or end_of - begin != prod(shape) * dtype.itemsize or end_of > len(values):
            raise ValueError("the tensors do not lie one behind another")
        part, end = values[begin:end_of], end_of
        if part and (len(data) - len(values) + begin) % dtype.itemsize:
            part = memoryview(bytearray(part))
        found[name] = torch.frombuffer(part, dtype=dtype).reshape(shape) if part else torch.empty(shape, dtype=dtype)
    if end != len(values):
        raise ValueError("more bytes than tensors")
    return found
