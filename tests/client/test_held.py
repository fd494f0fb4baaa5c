"""Downloads that go on after a new start, against a real coordinator that breaks off."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from agents import examples
from evil import Evil

from diastole.client.connection import Connection
from diastole.client.errors import MessageError, RefusedError
from diastole.client.held import Held
from diastole.client.statefolder import StateFolder
from diastole.models.training import never
from diastole.proto.payload import CHUNK_BYTES, Payload, PayloadError
from diastole.proto.profile import Profile
from diastole.v1 import device_pb2 as pb

OBJECT = Payload.of(bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end")


class Breaking(Evil):
    """Sends `OBJECT`, each call at most `most` bytes of it before it breaks off for good; notes the offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.most = CHUNK_BYTES
        self.offsets: list[int] = []
        self.chunks = self.send

    def send(self, request: Any, context: Any) -> Iterator[pb.Chunk]:
        self.offsets.append(request.offset)
        sent = 0
        for start in range(request.offset, len(OBJECT.data), CHUNK_BYTES):
            data = OBJECT.data[start : start + CHUNK_BYTES]
            if sent + len(data) > self.most:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "broken")
            sent += len(data)
            yield pb.Chunk(data=data)


@pytest.fixture
def breaking() -> Iterator[Breaking]:
    with closing(Breaking()) as breaking:
        yield breaking


def start(breaking: Breaking, folder: StateFolder) -> tuple[Connection, Held]:
    connection = Connection(f"127.0.0.1:{breaking.port}", "one", Profile("", len(examples())), patience=1.0)
    connection.join()
    return connection, Held(connection.download, folder)


def get(breaking: Breaking, path: Path, kind: str = "model") -> bytes | None:
    """Start an agent's end anew, and download."""
    with closing(StateFolder(path)) as folder:
        connection, held = start(breaking, folder)
        try:
            return (held.model if kind == "model" else held.untrained)(OBJECT.ref(), never)
        finally:
            connection.close("done")


@pytest.mark.parametrize("kind", ["model", "still"])
def test_a_download_goes_on_from_its_last_chunk_after_a_new_start_and_is_not_repeated(
    breaking: Breaking, tmp_path: Path, kind: str
) -> None:
    for _ in range(3):
        with pytest.raises(RefusedError):
            get(breaking, tmp_path, kind)
    assert get(breaking, tmp_path, kind) == OBJECT.data
    assert breaking.offsets == [k * CHUNK_BYTES for k in range(4)]
    assert get(breaking, tmp_path, kind) == OBJECT.data
    assert len(breaking.offsets) == 4


def test_a_damaged_part_or_object_is_downloaded_anew(breaking: Breaking, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        get(breaking, tmp_path)
    (part,) = tmp_path.glob("object-*.part")
    part.write_bytes(b"x" * CHUNK_BYTES)
    breaking.most = 1 << 30
    assert get(breaking, tmp_path) == OBJECT.data
    assert breaking.offsets[-2:] == [CHUNK_BYTES, 0]
    (whole,) = tmp_path.glob("object-*")
    assert whole.read_bytes() == OBJECT.data
    whole.write_bytes(b"")
    assert get(breaking, tmp_path) == OBJECT.data


def test_what_is_not_the_object_is_not_kept(breaking: Breaking, tmp_path: Path) -> None:
    breaking.chunks = lambda request, context: iter([pb.Chunk(data=bytes(len(OBJECT.data) - request.offset))] * 1)
    with pytest.raises((PayloadError, MessageError)):
        get(breaking, tmp_path)
    assert not list(tmp_path.glob("object-*"))


def test_only_the_latest_model_and_few_others_stay_in_the_folder(tmp_path: Path) -> None:
    things = [Payload.of(bytes([k]) * 10) for k in range(10)]
    data = {thing.sha256: thing.data for thing in things}

    def fetch(ref: Any, stopped: Any, part: Path | None) -> bytes:
        assert part is not None
        part.write_bytes(data[ref.sha256])
        return data[ref.sha256]

    with closing(StateFolder(tmp_path)) as folder:
        held = Held(fetch, folder)
        for thing in things:
            assert held.model(thing.ref(), never) == thing.data
            assert held.untrained(thing.ref(), never) == thing.data
        assert folder.names("object-model") == [f"object-model-{things[-1].sha256}"]
        assert len(folder.names("object-still")) == 8
