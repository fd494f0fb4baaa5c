"""Pieces of objects as they stand on the wire, beside what protobuf makes of them."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from diastole.proto.framing import read_chunk, read_part, write_chunk, write_part
from diastole.v1 import device_pb2 as pb

pieces = st.binary(max_size=300) | st.integers(0, 70_000).map(bytes)


@given(pieces)
@example(b"")
@example(bytes(127))
@example(bytes(128))
@example(bytes(1 << 21))
def test_pieces_stand_on_the_wire_as_protobuf_has_them(data: bytes) -> None:
    chunk, part = write_chunk(memoryview(data)), write_part(memoryview(data))
    assert pb.Chunk.FromString(chunk).data == read_chunk(chunk) == data
    assert pb.UploadRequest.FromString(part).data == read_part(part) == data
    assert read_chunk(pb.Chunk(data=data).SerializeToString()) == data
    assert read_part(pb.UploadRequest(data=data).SerializeToString()) == data


def test_a_header_passes_as_it_is() -> None:
    header = pb.UploadRequest(header=pb.UploadHeader(task_id="r1-a", offset=7))
    assert read_part(write_part(header)) == header
    assert read_part(b"") == pb.UploadRequest()


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x0a" + rest))
@example(b"\x0a\x00\x0a\x03abc")
@example(b"\x0a\x83\x00abc")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
def test_other_messages_are_read_as_protobuf_reads_them(message: bytes) -> None:
    try:
        expected = pb.Chunk.FromString(message).data
    except DecodeError:
        with pytest.raises(DecodeError):
            read_chunk(message)
    else:
        assert read_chunk(message) == expected


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x12" + rest))
@example(b"\x12\x01a\x0a\x00")
@example(b"\x0a\x00\x12\x01a")
def test_other_parts_are_read_as_protobuf_reads_them(message: bytes) -> None:
    try:
        expected = pb.UploadRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_part(message)
    else:
        assert read_part(message) == (expected.data if expected.WhichOneof("part") == "data" else expected)
