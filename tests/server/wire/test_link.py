"""The wire contract, held against real sockets."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from agents import end_round
from refusals import refusal

from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, schema_hash, tensor_bytes
from diastole.models.task import Report, Task, Update
from diastole.proto.payload import encode
from diastole.proto.words import Reason
from diastole.server.errors import AddressError
from diastole.server.link import Declined, Failure
from diastole.server.wire import hub
from diastole.server.wire import link as links
from diastole.server.wire.bounds import FAULTS
from diastole.server.wire.faults import Faults
from diastole.server.wire.link import GrpcLink
from diastole.v1 import device_pb2

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(4, 8))
Outcome = device_pb2.UploadReply


def states(tasks: list[Task]) -> dict[SubModelSpec, State]:
    return {task.spec: initial_state(MODEL, 0) for task in tasks}


class Background:
    """Runs a dispatch of full-size tasks in a thread and keeps what it yields."""

    def __init__(self, link: GrpcLink, tasks: list[Task], deadline: float | None = None) -> None:
        self._link = link
        self.outcomes: list[Update | Failure] = []
        sent = states(tasks)
        self._thread = threading.Thread(target=lambda: self.outcomes.extend(link.dispatch(tasks, sent, deadline)))
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float = 60.0) -> list[Update | Failure]:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the dispatch did not end"
        return self.outcomes

    def end(self) -> list[Update | Failure]:
        """End the round with what has come."""
        end_round(self._link)
        return self.join()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[GrpcLink, float], None]:
    """Let so many seconds have passed for the dispatch of a link."""
    passed = [0.0]
    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))

    def pass_(link: GrpcLink, seconds: float) -> None:
        passed[0] += seconds
        link._outcomes.put(None)

    return pass_


def test_a_task_goes_out_and_comes_back(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    sent = one.deliver()
    (update,) = running.join()
    assert isinstance(update, Update)
    assert all(torch.equal(update.state[name], sent[name]) for name in sent)
    assert update.report == Report(10, 1.0, 0.1)
    traffic = link.traffic()["one"]
    assert traffic.bytes_down == traffic.bytes_up == len(encode(sent))


def test_what_was_accepted_before_enough_had_come_counts_and_later_updates_are_not_needed(
    link: GrpcLink, device: Any, task: Any
) -> None:
    one, two, three = (device(name).join() for name in ("one", "two", "three"))
    assert link.wait(3, 60)
    tasks = [task(name) for name in ("one", "two", "three")]
    sending = link.dispatch(tasks, states(tasks), None)
    first = threading.Thread(target=one.deliver)
    first.start()
    update = next(sending)
    first.join()
    # Another one is accepted while the first is folded.
    two.deliver()
    owed = three.task()
    data = encode(three.state(owed))
    assert link.enough()
    assert [outcome.device for outcome in (update, *sending)] == ["one", "two"]
    assert three.upload(owed.task_id, data) == Outcome.OUTCOME_NOT_NEEDED
    assert next(three.stream).cancel.task_id == owed.task_id


def test_a_stranger_is_reported_and_the_round_goes_on(link: GrpcLink, device: Any, task: Any) -> None:
    one, stranger = device("one").join(), device("stranger").connect()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    assert refusal(lambda: stranger.upload("r1-one", b"x"))[1] == Reason.UNKNOWN_SESSION
    # A device that is known, but was not asked.
    two = device("two").join()
    assert two.upload("r1-one", b"x") == Outcome.OUTCOME_UNKNOWN_TASK
    assert one.upload(owed.task_id, encode(one.state(owed))) == Outcome.OUTCOME_ACCEPTED
    first, second, third = running.join()
    assert (first.device, first.faulty) == ("unknown", True)
    assert "without a session" in first.reason
    assert (second.device, second.faulty) == ("two", True)
    assert isinstance(third, Update)


def test_a_flood_from_strangers_is_bounded(link: GrpcLink, device: Any, task: Any) -> None:
    one, stranger = device("one").join(), device("stranger").connect()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    # Once the task has come, the round is open and counts.
    owed = one.task()
    for _ in range(130):
        refusal(lambda: stranger.upload("r1-one", b"x"))
    one.upload(owed.task_id, encode(one.state(owed)))
    assert len(running.join()) == 101


@pytest.mark.parametrize("data", [b"", b"not safetensors", b"\xff" * 64])
def test_garbage_is_a_fault_of_the_device(link: GrpcLink, device: Any, task: Any, data: bytes) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    if data:
        assert one.upload(owed.task_id, data) == Outcome.OUTCOME_ACCEPTED
    else:
        assert refusal(lambda: one.upload(owed.task_id, data))[1] == Reason.UPLOAD_HEADER
    (failure,) = running.end() if not data else running.join()
    assert isinstance(failure, Failure)
    assert failure.faulty


def test_an_upload_with_the_wrong_digest_is_dropped_and_may_be_repeated(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    good = encode(one.state(owed))
    spoilt = bytes([good[0] ^ 1]) + good[1:]
    call = lambda: one.stub.Upload(one.requests(owed.task_id, good, [spoilt]))  # noqa: E731
    assert refusal(call) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.UPLOAD_DIGEST)
    assert one.upload(owed.task_id, good) == Outcome.OUTCOME_ACCEPTED
    fault, update = running.join()
    assert isinstance(fault, Failure)
    assert fault.faulty
    assert isinstance(update, Update)


def test_an_oversized_upload_is_refused_before_it_is_sent(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    data = b"x" * (owed.max_upload_bytes + 1)
    assert refusal(lambda: one.upload(owed.task_id, data)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.UPLOAD_SIZE)
    (failure,) = running.end()
    assert isinstance(failure, Failure)
    assert str(owed.max_upload_bytes) in failure.reason


def test_an_update_may_be_as_large_as_its_tensors_and_a_generous_header(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    state = initial_state(MODEL, 0)
    assert len(encode(state)) <= owed.max_upload_bytes < tensor_bytes(state) + 8192
    assert one.upload(owed.task_id, b"x" * owed.max_upload_bytes) == Outcome.OUTCOME_ACCEPTED
    (failure,) = running.join()
    assert isinstance(failure, Failure)
    assert failure.faulty


def test_a_broken_upload_is_resumed_where_it_stopped(device: Any, task: Any, link: GrpcLink) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    data = encode(one.state(owed))
    half = len(data) // 2
    broken = threading.Event()

    def breaks() -> Any:
        yield from one.requests(owed.task_id, data, [data[:half]])
        broken.wait(60)

    call = one.stub.Upload.future(breaks())
    digest = next(one.requests(owed.task_id, data, [])).header.update.sha256
    ask = device_pb2.UploadStatusRequest(session=one.session, task_id=owed.task_id, sha256=digest)
    until = time.monotonic() + 60
    while one.stub.UploadStatus(ask).offset < half:
        assert time.monotonic() < until
        time.sleep(0.01)
    call.cancel()
    broken.set()
    status = one.stub.UploadStatus(ask)
    assert (status.offset, status.complete) == (half, False)
    assert refusal(lambda: one.upload(owed.task_id, data, offset=half - 1))[1] == Reason.UPLOAD_OFFSET
    assert one.upload(owed.task_id, data, offset=half) == Outcome.OUTCOME_ACCEPTED
    (update,) = running.join()
    assert isinstance(update, Update)
    assert encode(update.state) == data
    status = one.stub.UploadStatus(ask)
    assert (status.complete, status.outcome) == (True, Outcome.OUTCOME_ACCEPTED)
    assert one.upload(owed.task_id, data) == Outcome.OUTCOME_ACCEPTED


def test_a_download_starts_at_any_offset(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    whole = one.download(owed)
    assert len(whole) == owed.model.size
    assert one.download(owed, 100) == whole[100:]
    assert one.download(owed, len(whole)) == b""
    expected = (grpc.StatusCode.OUT_OF_RANGE, Reason.DOWNLOAD_OFFSET)
    assert refusal(lambda: one.download(owed, len(whole) + 1)) == expected
    running.end()
    assert refusal(lambda: one.download(owed)) == (grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_OBJECT)


def test_the_deadline_closes_the_round_and_late_uploads_are_not_needed(
    link: GrpcLink, device: Any, task: Any, later: Callable[[GrpcLink, float], None]
) -> None:
    fast, slow = device("fast").join(), device("slow").join()
    assert link.wait(2, 60)
    running = Background(link, [task("fast"), task("slow")], deadline=600.0)
    fast.deliver()
    late = slow.task()
    assert 500 < late.deadline_seconds <= 600
    data = encode(slow.state(late))
    later(link, 500)
    assert running.alive
    later(link, 100)
    (update,) = running.join()
    assert isinstance(update, Update)
    assert slow.upload(late.task_id, data) == Outcome.OUTCOME_NOT_NEEDED
    assert next(slow.stream).cancel.task_id == late.task_id


def test_nobody_needs_to_call_for_a_round_to_end_at_its_deadline(link: GrpcLink, device: Any, task: Any) -> None:
    device("one").join()
    assert link.wait(1, 60)
    began = time.monotonic()
    Background(link, [task("one")], deadline=0.3).join()
    assert time.monotonic() - began >= 0.3


def test_closing_the_dispatch_early_cancels_the_rest(link: GrpcLink, device: Any, task: Any) -> None:
    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    tasks = [task("one"), task("two")]
    outcomes = link.dispatch(tasks, states(tasks), None)
    sender = threading.Thread(target=one.deliver)
    sender.start()
    assert isinstance(next(outcomes), Update)
    outcomes.close()
    sender.join()
    owed = two.task()
    assert next(two.stream).cancel.task_id == owed.task_id
    assert not link.owes("two")


def test_a_silent_device_is_lost_with_its_lease(silent_link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one", address=f"127.0.0.1:{silent_link.port}").join()
    assert silent_link.wait(1, 60)
    running = Background(silent_link, [task("one")])
    one.task()
    silent_link.sessions.all()["one"].seen -= 100
    (failure,) = running.join()
    assert isinstance(failure, Failure)
    assert (failure.device, failure.faulty) == ("one", False)
    assert "1.5 s" in failure.reason
    assert not silent_link.devices()


def test_a_stream_that_opens_while_tasks_go_out_gets_each_once(link: GrpcLink, device: Any, task: Any) -> None:
    for number in range(1, 11):
        one = device("one")
        opening = threading.Thread(target=one.join)
        opening.start()
        running = Background(link, [task("one", number)])
        opening.join()
        # Whatever came for this round stands before its cancellation.
        received = [next(one.stream)]
        running.end()
        while not received[-1].HasField("cancel"):
            received.append(next(one.stream))
        assert [message.HasField("train") for message in received] == [True, False]


def test_a_device_that_is_gone_before_its_task_goes_out_does_not_hold_up_the_round(
    link: GrpcLink, device: Any, task: Any
) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session))
    (failure,) = Background(link, [task("one")]).join()
    assert isinstance(failure, Failure)
    assert not failure.faulty


def test_a_flood_of_faults_does_not_hold_a_round_open(
    link: GrpcLink, device: Any, task: Any, later: Callable[[GrpcLink, float], None]
) -> None:
    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    running = Background(link, [task("one")], deadline=600.0)
    one.task()
    while not running.outcomes:
        assert two.upload("r1-one", b"x") == Outcome.OUTCOME_UNKNOWN_TASK
    later(link, 600)
    outcomes = running.join()
    assert {(each.device, each.faulty) for each in outcomes if isinstance(each, Failure)} == {("two", True)}
    assert 0 < len(outcomes) <= FAULTS


def test_no_more_faults_are_listed_than_anybody_reads() -> None:
    faults, listed = Faults(), list[Failure]()
    for number in range(FAULTS + 7):
        faults.note("one", f"fault {number}", listed.append)
    assert len(listed) == FAULTS
    faults.note("two", "fault", listed.append)
    assert listed.pop().device == "two"
    faults.renew(listed.append)
    assert listed.pop().reason == "7 more faults of devices since the last round began"
    faults.note("one", "fault", listed.append)
    assert len(listed) == FAULTS + 1


def test_a_reason_is_one_short_printable_line() -> None:
    failure = Failure("one", "a\nb\x1b[31m" + "c" * 1000, faulty=True)
    assert len(failure.reason) == 300
    assert failure.reason.startswith("a?b?[31mc")


def test_an_upload_that_is_rounds_late_is_not_a_fault(link: GrpcLink, device: Any, task: Any) -> None:
    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    running = Background(link, [task("one", 1)])
    late = one.task()
    assert running.end() == []
    for number in (2, 3, 4):
        running = Background(link, [task("two", number)])
        if number == 4:
            assert one.upload(late.task_id, b"x" * 100) == Outcome.OUTCOME_NOT_NEEDED
            assert one.upload("r9-one", b"x" * 100) == Outcome.OUTCOME_UNKNOWN_TASK
        two.deliver()
        assert [type(outcome) for outcome in running.join()] == ([Failure, Update] if number == 4 else [Update])


def test_a_second_header_is_refused(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    owed = one.task()
    data = encode(one.state(owed))
    header = next(one.requests(owed.task_id, data, []))
    parts = [header, header, device_pb2.UploadRequest(data=data)]
    assert refusal(lambda: one.stub.Upload(iter(parts)))[1] == Reason.UPLOAD_HEADER
    assert not any(isinstance(outcome, Update) for outcome in running.end())


def test_a_device_that_leaves_gives_up_its_task(link: GrpcLink, device: Any, task: Any) -> None:
    one = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    one.task()
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session, message="battery"))
    assert running.join() == [Failure("one", "battery", faulty=False)]
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session))


def test_a_device_that_comes_back_is_given_its_task_again(link: GrpcLink, device: Any, task: Any) -> None:
    before = device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    first = before.task()
    after = device("one").join()
    assert list(before.stream) == []
    assert after.task().task_id == first.task_id
    assert refusal(lambda: before.download(first))[1] == Reason.UNKNOWN_SESSION
    state: State = after.state(first)
    assert after.upload(first.task_id, encode(state)) == Outcome.OUTCOME_ACCEPTED
    assert len(running.join()) == 1


def test_the_end_of_the_run_reaches_every_device(link: GrpcLink, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody who has left is waited for.
    monkeypatch.setattr(hub, "FAREWELL_SECONDS", 120.0)
    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    ended: list[str] = []

    def live(device: Any) -> None:
        ended.append(next(device.stream).finish.message)
        device.stub.Leave(device_pb2.LeaveRequest(session=device.session))

    threads = [threading.Thread(target=live, args=(each,)) for each in (one, two)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    link.close("that was it")
    for thread in threads:
        thread.join(60)
    assert ended == ["that was it"] * 2
    assert time.monotonic() - began < 60


def test_interrupt_ends_a_dispatch_and_a_wait(link: GrpcLink, device: Any, task: Any) -> None:
    device("one").join()
    assert link.wait(1, 60)
    running = Background(link, [task("one")])
    link.interrupt()
    assert running.join() == []
    assert not link.wait(5, 60)


def test_an_address_in_use_is_one_line(link: GrpcLink, model: ModelConfig) -> None:
    with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1:{link.port}: it is in use"):
        GrpcLink(f"127.0.0.1:{link.port}", "run", model, "")


def test_a_task_is_declined_for_a_reason_and_the_device_stays(link: GrpcLink, device: Any, task: Any) -> None:
    def decline(task_id: str, why: int, message: str) -> None:
        one.stub.Decline(device_pb2.DeclineRequest(session=one.session, task_id=task_id, why=why, message=message))

    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    why = device_pb2.DeclineRequest
    for number, (word, expected) in enumerate([(why.WHY_MEMORY, Declined.MEMORY), (99, Declined.TASK)], 1):
        running = Background(link, [task("one", number), task("two", number)])
        owed = one.task()
        # What others owe, and what nobody owes, is ignored.
        for other in (two.task().task_id, "nothing"):
            decline(other, word, "no")
        for _ in range(2):
            decline(owed.task_id, word, "too\nmuch")
        two.upload(f"r{number}-two", encode(initial_state(MODEL, 0)))
        first, second = running.join()
        assert first == Failure("one", "too?much", faulty=False, declined=expected)
        assert isinstance(second, Update)
        assert set(link.devices()) == {"one", "two"}
        assert one.upload(owed.task_id, b"x") == Outcome.OUTCOME_NOT_NEEDED
    running = Background(link, [task("one", 3)])
    decline(one.task().task_id, why.WHY_PAUSED, "")
    assert running.join() == [Failure("one", "paused", faulty=False, declined=Declined.PAUSED)]
    assert set(link.devices()) == {"two"}
    one.stub.Heartbeat(device_pb2.HeartbeatRequest(session=one.session))
    one.join()
    assert link.wait(2, 60)


def test_a_device_that_is_heard_of_and_never_delivers_does_not_hold_a_round(
    device: Any, task: Any, later: Callable[[GrpcLink, float], None]
) -> None:
    schema = schema_hash(initial_state(MODEL, 0))
    with closing(GrpcLink("127.0.0.1:0", "run", MODEL, schema, longest=600.0)) as link:
        one = device("one", address=f"127.0.0.1:{link.port}").join()
        assert link.wait(1, 60)
        running = Background(link, [task("one")])
        assert 500 < one.task().deadline_seconds <= 600
        one.stub.Heartbeat(device_pb2.HeartbeatRequest(session=one.session))
        later(link, 600)
        assert running.join() == []
        assert link.devices()
        assert next(one.stream).HasField("cancel")
        # A round with a deadline of its own keeps that.
        running = Background(link, [task("one")], 6000)
        assert one.task().deadline_seconds > 5000
        link.interrupt()
        running.join()
