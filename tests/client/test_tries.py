"""When an agent tries a call again, and when it ends."""

import itertools
from typing import Any

import grpc
import pytest

from diastole.client import tries as module
from diastole.client.errors import LinkError, RefusedError
from diastole.client.tries import ODD_TRIES, Tries
from diastole.proto.words import REASON_KEY, RETRY_KEY, Reason

CODE = grpc.StatusCode


class Refused(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, reason: str = "", retry: str = "") -> None:
        self._code, self._reason, self._retry = code, reason, retry

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "some words"

    def trailing_metadata(self) -> Any:
        return tuple((key, value) for key, value in ((REASON_KEY, self._reason), (RETRY_KEY, self._retry)) if value)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses so far; they are what passes of the clock."""
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "monotonic", lambda: 1000.0 + sum(pauses))
    return pauses


def tried(waited: list[float], error: Refused, patience: float = float("inf"), contact: float = 0.0) -> None:
    tries = Tries("host:1", "one", patience, waited.append, secure=False)
    for _ in itertools.takewhile(lambda count: count < 300, itertools.count()):
        tries.again(error, contact)


def test_a_coordinator_that_is_away_is_waited_for_with_bounded_pauses(waited, caplog) -> None:
    tried(waited, Refused(CODE.UNAVAILABLE))
    assert len(waited) == 300
    assert max(waited) <= module.LONGEST_PAUSE
    assert min(waited[20:]) >= module.LONGEST_PAUSE / 2
    assert len({*waited}) == 300
    assert [record.message for record in caplog.records] == ["waiting for the coordinator at host:1 (some words)"]


def test_patience_ends_it(waited) -> None:
    with pytest.raises(LinkError, match="no coordinator at host:1 after 60 s"):
        tried(waited, Refused(CODE.UNAVAILABLE), patience=60.0)
    assert 60 < sum(waited) < 60 + module.LONGEST_PAUSE


@pytest.mark.parametrize("code", [CODE.INTERNAL, CODE.RESOURCE_EXHAUSTED, CODE.UNKNOWN])
def test_a_coordinator_in_trouble_is_tried_again_but_not_for_ever(waited, code: grpc.StatusCode) -> None:
    with pytest.raises(RefusedError, match=f"some words \\({ODD_TRIES} times in a row\\)"):
        tried(waited, Refused(code))
    assert len(waited) == ODD_TRIES
    assert min(waited) >= 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CODE.PERMISSION_DENIED, ""),
        (CODE.UNIMPLEMENTED, ""),
        (CODE.RESOURCE_EXHAUSTED, Reason.UPLOAD_SIZE),
        (CODE.FAILED_PRECONDITION, Reason.MODEL_SCHEMA),
        (CODE.UNAVAILABLE, Reason.FINISHED),
    ],
)
def test_an_answer_is_an_answer(waited, code: grpc.StatusCode, reason: str) -> None:
    with pytest.raises(RefusedError, match="host:1: some words") as caught:
        tried(waited, Refused(code, reason))
    assert caught.value.reason == reason
    assert not waited


def test_a_name_in_use_is_waited_for_as_long_as_its_lease_may_last(waited) -> None:
    with pytest.raises(RefusedError):
        tried(waited, Refused(CODE.ALREADY_EXISTS, Reason.DEVICE_ONLINE))
    assert 60 < sum(waited) < 60 + module.ONLINE_SECONDS
    # One that had been in has done nothing wrong, and waits.
    waited.clear()
    tried(waited, Refused(CODE.ALREADY_EXISTS, Reason.DEVICE_ONLINE), patience=1.0, contact=1000.0)
    assert len(waited) == 300


@pytest.mark.parametrize(
    ("told", "least"), [("2500", 2.5), ("", 0.0), ("999999999", 60.0), ("9" * 400, 0.0), ("-5", 0.0), ("soon", 0.0)]
)
def test_an_agent_that_calls_too_often_waits_as_long_as_it_is_told_within_reason(
    waited: list[float], told: str, least: float
) -> None:
    tried(waited, Refused(CODE.RESOURCE_EXHAUSTED, Reason.TOO_OFTEN, told), patience=1.0)
    assert len(waited) == 300
    assert min(waited) >= least
    assert max(waited) <= max(least, 30.0)
