"""Pieces of objects on the wire, framed as protobuf frames them, without protobuf's copies of their bytes.

A `Chunk`, and the `data` of an `UploadRequest`, are each one field of bytes: a tag, the length as a varint, the bytes
(protobuf.dev, "Encoding"). Whatever is framed in another way is left to protobuf.
"""

from diastole.v1 import device_pb2 as pb

CHUNK, PART = b"\x0a", b"\x12"
"""The tags: field 1 of a `Chunk`, field 2 of an `UploadRequest`, both of bytes."""

LONGEST_VARINT = 5


def write_chunk(data: bytes | memoryview) -> bytes:
    """Return a `Chunk` as it stands on the wire."""
    return b"".join((CHUNK, _varint(len(data)), data))


def read_chunk(message: bytes) -> memoryview:
    """Return the bytes of a `Chunk`. Raises protobuf's `DecodeError`."""
    data = _read(CHUNK, message)
    return memoryview(pb.Chunk.FromString(message).data) if data is None else data


def write_part(part: pb.UploadRequest | memoryview) -> bytes:
    """Return an `UploadRequest` as it stands on the wire; bytes are its `data`."""
    if isinstance(part, memoryview):
        return b"".join((PART, _varint(len(part)), part))
    return part.SerializeToString()


def read_part(message: bytes) -> pb.UploadRequest | memoryview:
    """Return the `data` of an `UploadRequest`, or the message if it has none. Raises protobuf's `DecodeError`."""
    data = _read(PART, message)
    if data is not None:
        return data
    request = pb.UploadRequest.FromString(message)
    return memoryview(request.data) if request.WhichOneof("part") == "data" else request


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read(tag: bytes, message: bytes) -> memoryview | None:
    """Return what follows a tag and its length, if that is the whole message."""
    if message[:1] != tag:
        return None
    length, at = 0, 1
    for byte in message[1 : 1 + LONGEST_VARINT]:
        length |= (byte & 0x7F) << 7 * (at - 1)
        at += 1
        if byte < 0x80:
            return memoryview(message)[at:] if at + length == len(message) else None
    return None
