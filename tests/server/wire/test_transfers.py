"""Transfers that stand still, creep, or crowd, on real sockets."""

import asyncio
import gc
import hashlib
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from refusals import refusal

from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig
from diastole.proto.payload import CHUNK_BYTES, FIRST_CHUNK, Payload, encode
from diastole.proto.profile import Profile
from diastole.proto.words import Reason
from diastole.server.link import Failure
from diastole.server.wire.board import LiveRun, RunOffer
from diastole.server.wire.bounds import TransferBounds, most_connections, raise_descriptors
from diastole.server.wire.exchange import Exchange, OwedTask
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.sessions import Sessions
from diastole.server.wire.transfers import HELD_BYTES, Transfers
from diastole.v1 import device_pb2, device_pb2_grpc

# Larger than what a device that reads nothing, or little ahead, is sent.
MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(128, 512))
STATE = initial_state(MODEL, 0)
DATA = encode(STATE)
PIECES = [DATA[start : start + (1 << 20)] for start in range(0, len(DATA), 1 << 20)]
Outcome = device_pb2.UploadReply


@contextmanager
def served(**bounds: Any) -> Iterator[GrpcLink]:
    link = GrpcLink("127.0.0.1:0", "run", MODEL, schema_hash(STATE), lease=60.0, bounds=TransferBounds(**bounds))
    with closing(link):
        yield link


def rebound(link: GrpcLink, **bounds: Any) -> None:
    """Change the bounds of what moves from now on."""
    transfers = link.hub.transfers
    for each in (transfers, transfers.up, transfers.down):
        each._bounds = replace(each._bounds, **bounds)


def comes(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


class Round:
    """A round on a link, in a thread; leaving it waits until every task has an outcome."""

    def __init__(self, link: GrpcLink, device: Callable[..., Any], *names: str) -> None:
        self.devices = [device(name, address=f"127.0.0.1:{link.port}").join(schema_hash(STATE)) for name in names]
        assert link.wait(len(names), 60)
        self.outcomes: list[Update | Failure] = []
        tasks = [Task(f"r1-{name}", 1, name, spec_of(1.0), TrainConfig(), 1) for name in names]
        self._thread = threading.Thread(
            target=lambda: self.outcomes.extend(link.dispatch(tasks, {spec_of(1.0): STATE}, 120.0))
        )

    def __enter__(self) -> "Round":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(150)
        assert not self._thread.is_alive()


class Slow:
    """An upload whose pieces a test sends one by one, behind those that it begins with."""

    def __init__(self, device: Any, *pieces: bytes) -> None:
        self._pieces: list[bytes | None] = [*pieces]
        self._more = threading.Condition()
        task = device.task()

        def parts() -> Iterator[device_pb2.UploadRequest]:
            yield from device.requests(task.task_id, DATA, [])
            while True:
                with self._more:
                    self._more.wait_for(lambda: self._pieces)
                    piece = self._pieces.pop(0)
                if piece is None:
                    return
                yield device_pb2.UploadRequest(data=piece)

        self.task_id = task.task_id
        self.call = device.stub.Upload.future(parts())

    def send(self, piece: bytes | None) -> None:
        with self._more:
            self._pieces.append(piece)
            self._more.notify_all()


def standing(device: Any, task_id: str) -> device_pb2.UploadStatusReply:
    digest = hashlib.sha256(DATA).hexdigest()
    ask = device_pb2.UploadStatusRequest(session=device.session, task_id=task_id, sha256=digest)
    return device.stub.UploadStatus(ask)


def test_an_upload_that_stands_still_is_ended_and_goes_on_where_it_stood(device: Callable[..., Any]) -> None:
    with served() as link, Round(link, device, "one") as round_:
        (one,) = round_.devices
        slow = Slow(one, DATA[:1000])
        comes(lambda: standing(one, slow.task_id).offset == 1000)
        rebound(link, idle_seconds=0.3)
        slow.send(DATA[1000:1001])
        assert refusal(slow.call.result) == (grpc.StatusCode.UNAVAILABLE, Reason.STALLED)
        slow.send(None)
        rebound(link, idle_seconds=60.0)
        # What came is written by another thread than answers.
        comes(lambda: standing(one, slow.task_id).offset == 1001)
        assert one.upload(slow.task_id, DATA, offset=1001) == Outcome.OUTCOME_ACCEPTED
    (update,) = round_.outcomes
    assert isinstance(update, Update)


def test_an_upload_that_creeps_does_not_hold_a_round(device: Callable[..., Any]) -> None:
    bounds = {"idle_seconds": 60.0, "grace_seconds": 0.5, "least_rate": 1e5}
    with served(**bounds) as link, Round(link, device, "one") as round_:
        slow = Slow(round_.devices[0])
        while not slow.call.done():
            slow.send(b"x")
            time.sleep(0.05)
        assert refusal(slow.call.result) == (grpc.StatusCode.UNAVAILABLE, Reason.STALLED)
        slow.send(None)
        assert standing(round_.devices[0], slow.task_id).outcome == Outcome.OUTCOME_NOT_NEEDED
    (failure,) = round_.outcomes
    assert isinstance(failure, Failure)
    assert not failure.faulty
    assert "bytes a second" in failure.reason


def test_a_message_that_never_comes_is_not_waited_for(device: Callable[..., Any]) -> None:
    with served(idle_seconds=0.3) as link:
        one, quiet = device("one", address=f"127.0.0.1:{link.port}").connect(), threading.Event()

        def nothing() -> Iterator[device_pb2.UploadRequest]:
            quiet.wait(60)
            yield from ()

        assert refusal(one.stub.Upload.future(nothing()).result)[1] == Reason.STALLED
        quiet.set()


def test_who_finds_no_place_is_told_to_come_back_and_who_has_had_a_turn_makes_room(device: Callable[..., Any]) -> None:
    bounds = {"places": 1, "line_seconds": 0.3, "turn_seconds": 0.0}
    with served(**bounds) as link, Round(link, device, "one", "two") as round_:
        one, two = round_.devices
        slow = Slow(one)
        slow.send(DATA[:1000])
        comes(lambda: standing(one, slow.task_id).offset == 1000)
        owed = two.task()
        assert refusal(lambda: two.upload(owed.task_id, DATA)) == (grpc.StatusCode.UNAVAILABLE, Reason.CROWDED)
        rebound(link, line_seconds=60.0)
        waiting = two.stub.Upload.future(two.requests(owed.task_id, DATA, PIECES))
        comes(lambda: link.hub.transfers.up.waiting)
        slow.send(DATA[1000:1001])
        assert waiting.result().outcome == Outcome.OUTCOME_ACCEPTED
        assert refusal(slow.call.result) == (grpc.StatusCode.UNAVAILABLE, Reason.CROWDED)
        slow.send(None)
        assert one.upload(slow.task_id, DATA, offset=1001) == Outcome.OUTCOME_ACCEPTED
    assert [type(outcome) for outcome in round_.outcomes] == [Update, Update]


@contextmanager
def unread(link: GrpcLink, device: Any, owed: device_pb2.TrainTask, count: int = 1) -> Iterator[list[Any]]:
    """Begin downloads of a device that takes one chunk of each, and stops."""
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
    request = device_pb2.DownloadRequest(session=device.session, sha256=owed.model.sha256)
    with grpc.insecure_channel(f"127.0.0.1:{link.port}", options) as channel:
        calls = []
        for _ in range(count):
            calls.append(device_pb2_grpc.DeviceServiceStub(channel).Download(request))
            assert next(calls[-1]).data
        yield calls


def test_a_device_that_reads_nothing_keeps_its_place_for_a_while_only(device: Callable[..., Any]) -> None:
    bounds = {"places": 1, "stalls": 1, "line_seconds": 60.0}
    with served(**bounds) as link, Round(link, device, "one", "two") as round_:
        one, two = round_.devices
        owed = one.task()
        with unread(link, one, owed) as (call,), ThreadPoolExecutor(1) as pool:
            delivering = pool.submit(two.deliver)
            comes(lambda: link.hub.transfers.down.waiting)
            rebound(link, idle_seconds=0.4)
            # It takes the piece that is on its way, and the next one has less time.
            there, taken = link.traffic()["one"].bytes_down, FIRST_CHUNK
            while taken <= there:
                taken += len(next(call).data)
            comes(lambda: link.hub.transfers.stalled)
            rebound(link, idle_seconds=60.0)
            delivering.result(60)
            assert refusal(lambda: list(call)) == (grpc.StatusCode.UNAVAILABLE, Reason.STALLED)
            assert refusal(lambda: one.download(owed)) == (grpc.StatusCode.UNAVAILABLE, Reason.CROWDED)
        one.upload(owed.task_id, DATA)


def test_one_more_download_of_a_device_ends_its_oldest(device: Callable[..., Any]) -> None:
    with served(calls=2) as link, Round(link, device, "one") as round_:
        (one,) = round_.devices
        owed = one.task()
        with unread(link, one, owed, 3) as (oldest, *others):
            assert refusal(lambda: list(oldest)) == (grpc.StatusCode.UNAVAILABLE, Reason.STALLED)
            assert all(sum(len(chunk.data) for chunk in call) > len(DATA) // 2 for call in others)
        one.upload(owed.task_id, DATA)


def test_what_cannot_be_stored_is_nobodys_fault_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    data = bytes(range(256)) * (1 << 13)
    digest, told = hashlib.sha256(data).hexdigest(), list[Any]()
    exchange = Exchange(tmp_path, told.append)
    task = Task("r1-a", 1, "a", spec_of(1.0), TrainConfig(), 7)
    exchange.open([OwedTask(task, Payload.of(b"x"), len(data))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    begin = ("a", "r1-a", digest, len(data))
    upload: Any = exchange.begin(*begin, 0, Report(1, 1.0, 1.0), 1)
    exchange.write(upload, data[: 1 << 20], 1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((1 << 20) + 1000, hard))
        with pytest.raises(OSError, match="too large"):
            exchange.write(upload, data[1 << 20 :], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    exchange.rest(upload, 1)
    assert exchange.status("a", "r1-a", digest) == (1 << 20, None)
    again: Any = exchange.begin(*begin, 1 << 20, Report(1, 1.0, 1.0), 2)
    exchange.write(again, data[1 << 20 :], 2)
    exchange.finish(again, 2)
    assert [each.path.read_bytes() for each in told] == [data]


def test_an_upload_that_breaks_off_while_its_piece_is_written_ends_without_a_word(tmp_path: Path) -> None:
    """The piece then belongs to nobody: another call has taken the upload over."""
    heard, work, given = list[str](), ThreadPoolExecutor(1), asyncio.Event()
    exchange = Exchange(tmp_path, lambda outcome: None)
    exchange.open([OwedTask(Task("r1-a", 1, "a", spec_of(1.0), TrainConfig(), 7), Payload.of(b"x"), len(DATA))])
    begin = ("a", "r1-a", hashlib.sha256(DATA).hexdigest(), len(DATA), 0, Report(1, 1.0, 1.0))

    async def pieces() -> AsyncIterator[Any]:
        yield memoryview(DATA)[:CHUNK_BYTES]
        given.set()
        yield memoryview(bytes(HELD_BYTES))
        raise AssertionError("the call is over before it wants more")

    async def break_off() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["message"]))
        sessions = Sessions(20.0)
        transfers = Transfers(sessions, work, TransferBounds())
        run = LiveRun(RunOffer("run", "", ""), exchange, lambda failure: None, lambda event: None)
        upload: Any = exchange.begin(*begin, 1)
        with upload.held():
            call = asyncio.create_task(transfers.take(sessions.join("a", Profile("test", 1)), run, upload, pieces()))
            await given.wait()
            call.cancel()
            await asyncio.wait([call])
            exchange.begin(*begin, 2)
        assert call.cancelled()
        await asyncio.to_thread(work.shutdown)

    asyncio.run(break_off())
    gc.collect()
    assert heard == []


def test_without_descriptors_a_device_is_told_to_come_back(device: Callable[..., Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served() as link, Round(link, device, "one") as round_:
        (one,) = round_.devices
        owed = one.task()
        with Path("/dev/null").open() as lowest:
            free = lowest.fileno()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            assert refusal(lambda: one.upload(owed.task_id, DATA)) == (grpc.StatusCode.UNAVAILABLE, Reason.STORAGE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert standing(one, owed.task_id).offset == 0
        assert one.upload(owed.task_id, DATA) == Outcome.OUTCOME_ACCEPTED
    (update,) = round_.outcomes
    assert isinstance(update, Update)


def test_a_coordinator_leaves_descriptors_for_its_files() -> None:
    have = raise_descriptors()
    assert have == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert most_connections(1024, 64) + 2 * 64 < 1024 - 100
    assert most_connections(100, 64) > 0
