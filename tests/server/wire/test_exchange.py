import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.models.methods.widths.width import spec_of
from diastole.models.task import Report, Task
from diastole.models.training import TrainConfig
from diastole.proto.payload import Payload, encode
from diastole.proto.words import Reason
from diastole.server.link import Failure
from diastole.server.wire.exchange import Answer, Exchange, OwedTask, UploadError
from diastole.server.wire.upload import Upload

REPORT = Report(examples=10, loss=0.5, seconds=2.0)
DATA = bytes(range(100))
PAYLOAD = Payload.of(encode({"w": torch.zeros(8), "b": torch.zeros(2)}))
MOST = 4096


def task(device: str = "a", number: int = 1) -> Task:
    return Task(f"r{number}-{device}", number, device, spec_of(1.0), TrainConfig(), 7)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Desk:
    """An exchange, what it accepted, what was given up, and short words for what a device does."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.accepted: list[tuple[Upload, bytes]] = []
        self.failures: list[Failure] = []
        self.exchange = Exchange(spool, self.tell)

    def tell(self, outcome: Upload | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.accepted.append((outcome, outcome.path.read_bytes()))

    def open(self, *tasks: Task) -> None:
        self.exchange.open(OwedTask(item, PAYLOAD, MOST) for item in tasks)

    def begin(
        self, offset: int = 0, data: bytes = DATA, device: str = "a", task_id: str = "r1-a", writer: object = "w"
    ) -> Upload | Answer:
        return self.exchange.begin(device, task_id, sha(data), len(data), offset, REPORT, writer)

    def files(self) -> list[str]:
        return sorted(re.sub(r"\.\d+\.part$", ".part", path.name) for path in self.spool.iterdir())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.open(task("a"), task("b"))
    return desk


def refused(reason: Reason, call: Callable[[], object]) -> None:
    with pytest.raises(UploadError) as caught:
        call()
    assert caught.value.reason is reason
    assert len(str(caught.value).splitlines()) == 1


def uploaded(desk: Desk, data: bytes = DATA, device: str = "a", task_id: str = "r1-a") -> None:
    upload = desk.begin(0, data, device, task_id)
    desk.exchange.write(upload, data, "w")
    desk.exchange.finish(upload, "w")


# Rounds


def test_tasks_are_owed_until_delivered_withdrawn_or_closed(desk: Desk) -> None:
    desk.open(task("c"))
    assert [order.task.task_id for order in desk.exchange.owed("a")] == ["r1-a"]
    assert desk.exchange.owed("z") == []
    assert desk.exchange.open_tasks() == 3
    uploaded(desk)
    assert desk.exchange.owed("a") == []
    desk.exchange.withdraw(desk.exchange.owed("b")[0].task)
    assert desk.exchange.owed("b") == []
    assert desk.exchange.open_tasks() == 1
    assert [item.device for item in desk.exchange.close()] == ["c"]
    assert desk.exchange.open_tasks() == 0
    assert desk.exchange.close() == []


def test_objects_can_be_found_while_the_round_is_open(desk: Desk) -> None:
    (owed,) = desk.exchange.owed("a")
    assert owed.payload is PAYLOAD
    assert desk.exchange.find("a", PAYLOAD.sha256) is PAYLOAD
    assert desk.exchange.find("z", PAYLOAD.sha256) is None
    assert desk.exchange.find("a", sha(b"other")) is None
    desk.exchange.close()
    assert desk.exchange.find("a", PAYLOAD.sha256) is None


def test_a_device_that_is_gone_gives_up_what_it_owes_and_nothing_else(desk: Desk) -> None:
    desk.exchange.write(desk.begin(), DATA[:50], "w")
    desk.exchange.give_up("a", "battery")
    assert desk.failures == [Failure("a", "battery", faulty=False)]
    assert desk.exchange.owed("a") == []
    assert [order.task.device for order in desk.exchange.owed("b")] == ["b"]
    assert desk.files() == []
    assert desk.begin() is Answer.NOT_NEEDED
    desk.exchange.give_up("a", "battery")
    assert len(desk.failures) == 1


# Uploads


def test_a_complete_upload_is_handed_on_once(desk: Desk) -> None:
    upload = desk.begin()
    for start in range(0, 100, 30):
        desk.exchange.write(upload, DATA[start : start + 30], "w")
    assert desk.accepted == []
    desk.exchange.finish(upload, "w")
    ((taken, data),) = desk.accepted
    assert taken is upload
    assert data == DATA
    assert (taken.task.task_id, taken.report) == ("r1-a", REPORT)
    assert desk.files() == ["r1-a.part"]


def test_an_upload_resumes_where_it_broke_off(desk: Desk) -> None:
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (0, None)
    upload = desk.begin(writer=1)
    desk.exchange.write(upload, DATA[:37], 1)
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (37, None)
    again = desk.begin(37, writer=2)
    desk.exchange.write(again, DATA[37:], 2)
    desk.exchange.finish(again, 2)
    assert desk.accepted[0][1] == DATA


@given(cuts=st.lists(st.integers(0, 99), max_size=6))
@settings(deadline=None, max_examples=25)
def test_an_upload_may_break_off_anywhere_any_number_of_times(tmp_path_factory, cuts: list[int]) -> None:
    desk = Desk(tmp_path_factory.mktemp("spool"))
    desk.open(task())
    for call, end in enumerate([*sorted(cuts), 100]):
        offset, outcome = desk.exchange.status("a", "r1-a", sha(DATA))
        assert outcome is None
        upload = desk.begin(offset, writer=call)
        desk.exchange.write(upload, DATA[offset:end], call)
    desk.exchange.finish(upload, call)
    assert [data for _, data in desk.accepted] == [DATA]


def test_an_upload_may_start_again_from_nothing(desk: Desk) -> None:
    desk.exchange.write(desk.begin(), b"\xff" * 50, "w")
    uploaded(desk)
    assert desk.accepted[0][1] == DATA


def test_another_object_starts_from_nothing(desk: Desk) -> None:
    desk.exchange.write(desk.begin(), DATA[:50], "w")
    other = DATA[::-1]
    assert desk.exchange.status("a", "r1-a", sha(other)) == (0, None)
    uploaded(desk, other)
    assert desk.accepted[0][1] == other


@pytest.mark.parametrize("offset", [1, 49, 51, 100, 10**9])
def test_a_wrong_offset_is_refused_and_the_upload_can_go_on(desk: Desk, offset: int) -> None:
    upload = desk.begin()
    desk.exchange.write(upload, DATA[:50], "w")
    refused(Reason.UPLOAD_OFFSET, lambda: desk.begin(offset, writer="x"))
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (50, None)
    desk.exchange.write(desk.begin(50), DATA[50:], "w")
    desk.exchange.finish(upload, "w")
    assert desk.accepted[0][1] == DATA


def test_an_upload_that_never_began_has_no_offset_but_zero(desk: Desk) -> None:
    refused(Reason.UPLOAD_OFFSET, lambda: desk.begin(5))


def test_an_update_may_be_as_large_as_its_order_says(desk: Desk) -> None:
    refused(Reason.UPLOAD_SIZE, lambda: desk.begin(data=bytes(MOST + 1)))
    assert desk.files() == []
    uploaded(desk, bytes(MOST))
    assert len(desk.accepted[0][1]) == MOST


def test_more_bytes_than_announced_are_refused(desk: Desk) -> None:
    upload = desk.begin()
    desk.exchange.write(upload, DATA[:99], "w")
    refused(Reason.UPLOAD_SIZE, lambda: desk.exchange.write(upload, b"xy", "w"))
    desk.exchange.write(upload, DATA[99:], "w")
    desk.exchange.finish(upload, "w")
    assert desk.accepted[0][1] == DATA


def test_fewer_bytes_than_announced_are_refused_and_kept(desk: Desk) -> None:
    upload = desk.begin()
    desk.exchange.write(upload, DATA[:99], "w")
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.finish(upload, "w"))
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (99, None)
    assert desk.accepted == []


@pytest.mark.parametrize(("digest", "size"), [("", 10), ("ab", 10), ("0" * 63, 10), ("0" * 64, 0)])
def test_a_header_that_names_no_object_is_refused(desk: Desk, digest: str, size: int) -> None:
    refused(Reason.UPLOAD_HEADER, lambda: desk.exchange.begin("a", "r1-a", digest, size, 0, REPORT, "w"))
    assert desk.files() == []


def test_content_with_another_digest_is_dropped_and_may_be_sent_again(desk: Desk) -> None:
    upload = desk.begin()
    desk.exchange.write(upload, bytes(100), "w")
    refused(Reason.UPLOAD_DIGEST, lambda: desk.exchange.finish(upload, "w"))
    assert desk.files() == []
    assert desk.accepted == []
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (0, None)
    uploaded(desk)
    assert desk.accepted[0][1] == DATA


# Whose task


def test_nobody_delivers_or_learns_of_anothers_task(desk: Desk) -> None:
    desk.exchange.write(desk.begin(), DATA[:50], "w")
    assert desk.begin(50, device="b") is Answer.UNKNOWN_TASK
    assert desk.exchange.status("b", "r1-a", sha(DATA)) == (0, Answer.UNKNOWN_TASK)
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (50, None)
    desk.begin(50)
    uploaded(desk)
    assert desk.begin(device="b") is Answer.UNKNOWN_TASK
    assert desk.exchange.status("b", "r1-a", sha(DATA)) == (0, Answer.UNKNOWN_TASK)


@pytest.mark.parametrize("task_id", ["", "r9-a", "../r1-a"])
def test_a_task_nobody_gave_is_unknown(desk: Desk, task_id: str) -> None:
    assert desk.begin(task_id=task_id) is Answer.UNKNOWN_TASK
    assert desk.exchange.status("a", task_id, sha(DATA)) == (0, Answer.UNKNOWN_TASK)
    assert desk.files() == []


# Repeated and late


def test_a_repeated_upload_is_answered_as_the_first_was(desk: Desk) -> None:
    uploaded(desk)
    for _ in range(2):
        assert desk.begin() is Answer.ACCEPTED
        assert desk.exchange.status("a", "r1-a", sha(DATA)) == (0, Answer.ACCEPTED)
    desk.exchange.close()
    desk.open(task("a", 2))
    assert desk.begin() is Answer.ACCEPTED
    assert len(desk.accepted) == 1
    uploaded(desk, task_id="r2-a")
    assert len(desk.accepted) == 2


@pytest.mark.parametrize("end", ["withdraw", "close"])
def test_a_late_upload_is_not_needed(desk: Desk, end: str) -> None:
    if end == "close":
        desk.exchange.close()
    else:
        desk.exchange.withdraw(desk.exchange.owed("a")[0].task)
    assert desk.begin() is Answer.NOT_NEEDED
    assert desk.exchange.status("a", "r1-a", sha(DATA)) == (0, Answer.NOT_NEEDED)
    desk.exchange.close()
    desk.open(task("a", 2))
    assert desk.begin() is Answer.NOT_NEEDED


@pytest.mark.parametrize("end", ["withdraw", "close"])
def test_an_upload_under_way_is_dropped_when_its_task_goes(desk: Desk, end: str) -> None:
    upload = desk.begin()
    desk.exchange.write(upload, DATA[:50], "w")
    assert desk.files() == ["r1-a.part"]
    if end == "close":
        desk.exchange.close()
    else:
        desk.exchange.withdraw(upload.task)
    assert desk.files() == []
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.write(upload, DATA[50:], "w"))
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.finish(upload, "w"))
    assert desk.accepted == []


def test_withdrawing_what_was_delivered_does_not_undo_it(desk: Desk) -> None:
    (owed,) = desk.exchange.owed("a")
    uploaded(desk)
    desk.exchange.withdraw(owed.task)
    desk.exchange.close()
    assert desk.begin() is Answer.ACCEPTED
    assert desk.files() == ["r1-a.part"]


# Two calls at once


@pytest.mark.parametrize("offset", [0, 50])
def test_a_second_call_takes_the_upload_over(desk: Desk, offset: int) -> None:
    first = desk.begin(writer=1)
    desk.exchange.write(first, DATA[:50], 1)
    second = desk.begin(offset, writer=2)
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.write(first, DATA[50:], 1))
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.finish(first, 1))
    desk.exchange.write(second, DATA[offset:], 2)
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.finish(first, 1))
    desk.exchange.finish(second, 2)
    refused(Reason.UPLOAD_OFFSET, lambda: desk.exchange.finish(second, 2))
    assert [data for _, data in desk.accepted] == [DATA]


def test_a_call_that_is_refused_takes_nothing_over(desk: Desk) -> None:
    first = desk.begin(writer=1)
    desk.exchange.write(first, DATA[:50], 1)
    refused(Reason.UPLOAD_OFFSET, lambda: desk.begin(10, writer=2))
    refused(Reason.UPLOAD_SIZE, lambda: desk.begin(data=bytes(10**6), writer=2))
    refused(Reason.UPLOAD_OFFSET, lambda: desk.begin(10, data=DATA[::-1], writer=2))
    desk.exchange.write(first, DATA[50:], 1)
    desk.exchange.finish(first, 1)
    assert desk.accepted[0][1] == DATA


def test_the_report_of_the_last_call_counts(desk: Desk) -> None:
    desk.exchange.write(desk.begin(), DATA[:50], "w")
    later = Report(examples=11, loss=0.25, seconds=3.0)
    upload = desk.exchange.begin("a", "r1-a", sha(DATA), len(DATA), 50, later, "w")
    desk.exchange.write(upload, DATA[50:], "w")
    desk.exchange.finish(upload, "w")
    assert desk.accepted[0][0].report == later
