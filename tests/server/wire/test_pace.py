"""How often a device may call: as an account of single calls, on the wire, and as an agent obeys."""

from collections import deque
from typing import Any

import grpc
import pytest
import torch
from refusals import refusal

from diastole.client.connection import Connection
from diastole.proto.profile import Profile
from diastole.proto.words import RETRY_KEY, Reason
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.pace import CALLS, JOIN_CALLS, TASK_CALLS, Pace
from diastole.v1 import device_pb2 as pb


def test_a_device_may_call_so_often_a_minute_and_so_often_at_once() -> None:
    pace, taken = Pace(100.0), deque[float]()
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    now, refused = 100.0, 0
    for draw in draws:
        now += draw / 250
        wait = pace.take(now)
        if wait == 0:
            taken.append(now)
        else:
            refused += 1
            # It is let in as soon as it was told, and not before.
            again = Pace(pace.at, pace.left)
            assert again.take(now + 0.99 * wait) > 0
            again = Pace(pace.at, pace.left)
            assert again.take(now + 1.001 * wait) == 0
    # In any time at most what fills in it, and a full bucket.
    times = list(taken)
    for first in range(0, len(times), 997):
        for last in range(first, len(times), 499):
            assert last - first + 1 <= CALLS + (times[last] - times[first]) * CALLS / 60 + 1
    assert refused > 1000
    assert len(taken) > CALLS + 0.99 * (now - 100.0) * CALLS / 60


def test_what_a_task_takes_is_given_beside_and_a_rest_does_not_pile_up() -> None:
    pace = Pace(0.0, 0.0)
    pace.give()
    assert [pace.take(0.0) for _ in range(TASK_CALLS)] == [0.0] * TASK_CALLS
    assert pace.take(0.0) == pytest.approx(60 / CALLS)
    assert pace.take(1e6, CALLS) == 0
    assert pace.take(1e6) > 0


def test_a_device_that_calls_too_often_is_told_when_to_call_again(link: GrpcLink, device: Any) -> None:
    one, two = device("one").join(), device("two").join()
    for each in (one, two):
        each.stub.Heartbeat(pb.HeartbeatRequest(session=each.session))
    session = link.sessions.named("one")
    assert session is not None
    assert session.pace is not None
    session.pace.left = -CALLS / 60 * 30.0
    with pytest.raises(grpc.RpcError) as caught:
        one.stub.Heartbeat(pb.HeartbeatRequest(session=one.session))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (told,) = (int(value) for key, value in error.trailing_metadata() if key == RETRY_KEY)
    assert 29_000 < told <= 30_050
    assert refusal(lambda: one.upload("r1-one", b"x"))[1] == Reason.TOO_OFTEN
    # Others are not told off for it, and a new session is no way out.
    two.stub.Heartbeat(pb.HeartbeatRequest(session=two.session))
    assert refusal(device("one").join)[1] == Reason.TOO_OFTEN
    session.pace.left = JOIN_CALLS + 5.0
    again = device("one").join()
    assert link.sessions.named("one").pace is session.pace  # type: ignore[union-attr]
    again.stub.Heartbeat(pb.HeartbeatRequest(session=again.session))


def test_an_agent_waits_as_long_as_it_is_told_and_goes_on(link: GrpcLink) -> None:
    connection = Connection(f"127.0.0.1:{link.port}", "one", Profile("test", 10), patience=5.0)
    try:
        connection.join()
        assert connection.settled("r1-one")
        session = link.sessions.named("one")
        assert session is not None
        assert session.pace is not None
        session.pace.left = -CALLS / 60 * 0.4
        at = session.pace.at
        assert connection.settled("r1-one")
        assert session.pace.at - at >= 0.4
    finally:
        connection.close("done")
