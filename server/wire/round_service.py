"""The gRPC service about rounds and the models behind them; proto/diastole/v1/admin.proto is its contract."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import grpc

from diastole.proto.errors import DiastoleError
from diastole.proto.words import Reason, plain
from diastole.server.checkpoints import EARLIER, Earlier
from diastole.server.events import RoundClosed
from diastole.server.store.record import Part, closed_of, parts_in, parts_of
from diastole.server.store.store import Store
from diastole.server.wire.listed import ListedRun, named, stored
from diastole.server.wire.refusal import LONGEST_MESSAGE, refuse_operator
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc, common_pb2

PAGE_ROUNDS, CHUNK = 1000, 1 << 20
OUTCOMES = {
    "": pb.Assignment.OUTCOME_OWED,
    "accepted": pb.Assignment.OUTCOME_ACCEPTED,
    "quarantined": pb.Assignment.OUTCOME_QUARANTINED,
    "declined": pb.Assignment.OUTCOME_DECLINED,
    "lost": pb.Assignment.OUTCOME_LOST,
}


class RoundService(admin_pb2_grpc.RoundServiceServicer):
    """Answers operators about the rounds of a coordinator's runs, from its database, and takes rounds back."""

    def __init__(self, runs: Sequence[ListedRun], store: Store) -> None:
        """Serve what is in `store` of `runs`, which may change."""
        self._runs, self._store = runs, store

    def ListRounds(self, request: pb.ListRoundsRequest, context: grpc.ServicerContext) -> pb.ListRoundsReply:  # noqa: N802
        """Return the closed rounds, a page of them."""
        run = named(list(self._runs), request.run_id, context)
        with stored(context):
            rounds = self._rounds(run)
        rest = rounds[request.skip :]
        return pb.ListRoundsReply(rounds=rest[:PAGE_ROUNDS], more=len(rest) > PAGE_ROUNDS)

    def ShowRound(self, request: pb.ShowRoundRequest, context: grpc.ServicerContext) -> pb.ShowRoundReply:  # noqa: N802
        """Return one round and its devices."""
        run, reply = named(list(self._runs), request.run_id, context), None
        with stored(context):
            reply = self._round(run, request.number)
        if reply is None:
            text = f"run {run.run_id} has no round {request.number or 1}"
            refuse_operator(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_ROUND, text)
        return reply

    def ListCheckpoints(  # noqa: N802
        self, request: pb.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> pb.ListCheckpointsReply:
        """Return the rounds of which a checkpoint is kept."""
        run, reply = named(list(self._runs), request.run_id, context), pb.ListCheckpointsReply()
        with stored(context):
            scores = {each.number: each.scores for each in self._rounds(run) if not each.rolled_back}
        earlier = _earlier(run)
        for number in earlier.numbers():
            try:
                about = earlier.path(number).stat()
            except FileNotFoundError:
                continue
            found = scores.get(number)
            reply.checkpoints.add(round=number, bytes=about.st_size, written_at=about.st_mtime, scores=found)
        return reply

    def PullCheckpoint(  # noqa: N802
        self, request: pb.PullCheckpointRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.PullCheckpointReply]:
        """Send the models behind a round."""
        run = named(list(self._runs), request.run_id, context)
        number = request.round if request.HasField("round") else max(_earlier(run).numbers(), default=0)
        try:
            data = run.control.model(number)
        except (DiastoleError, OSError) as error:
            self._refuse(error, context)
        file = common_pb2.ObjectRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        yield pb.PullCheckpointReply(file=file, round=number, run_id=run.run_id)
        for start in range(0, len(data), CHUNK):
            yield pb.PullCheckpointReply(data=data[start : start + CHUNK])

    def Rollback(self, request: pb.RollbackRequest, context: grpc.ServicerContext) -> pb.RollbackReply:  # noqa: N802
        """Let a run go on behind an earlier round."""
        run = named(list(self._runs), request.run_id, context, alone=True)
        if not run.under_way:
            text = f"run {run.run_id} is not under way"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.UNKNOWN_RUN, text)
        try:
            run.control.roll_back(request.round)
        except (DiastoleError, OSError) as error:
            self._refuse(error, context)
        return pb.RollbackReply(run=run.message())

    def _round(self, run: ListedRun, number: int) -> pb.ShowRoundReply | None:
        """Return a round, by default the open or the last one; None if there is none. Raises `StoreError`."""
        closed = list(run.coordinator.closed) if run.coordinator else []
        last = len(closed) if run.coordinator else max((each.number for each in self._rounds(run)), default=0)
        opened = self._store.round(run.run_id, last + 1) if run.coordinator else None
        if opened is not None and number in (0, last + 1):
            about = pb.Round(number=last + 1, open=True)
            return pb.ShowRoundReply(round=about, devices=map(_assignment, parts_of(opened)))
        row = self._store.recorded(run.run_id, number or last)
        if row is not None:
            about = _about(closed_of(row), row.at, rolled_back=row.undone)
            return pb.ShowRoundReply(round=about, devices=map(_assignment, parts_in(row) or ()))
        return next((pb.ShowRoundReply(round=_about(each)) for each in closed if each.round == (number or last)), None)

    def _rounds(self, run: ListedRun) -> list[pb.Round]:
        """Return the closed rounds of a run. Raises `StoreError`."""
        rows = self._store.records(run.run_id)
        known = {row.number for row in rows if not row.undone}
        # Of before this run had a history, or of the run that it goes on from.
        closed = list(run.coordinator.closed) if run.coordinator else []
        older = [_about(each) for each in closed if each.round not in known]
        return [*older, *(_about(closed_of(row), row.at, rolled_back=row.undone) for row in rows)]

    def _refuse(self, error: DiastoleError | OSError, context: grpc.ServicerContext) -> NoReturn:
        text = plain(str(error), LONGEST_MESSAGE)
        refuse_operator(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_ROUND, text)


def _earlier(run: ListedRun) -> Earlier:
    return Earlier(run.folder / EARLIER)


def _scores(scores: Mapping[str, float] | None) -> dict[str, float]:
    return dict(scores or {})


def _about(closed: RoundClosed, at: float = 0.0, *, rolled_back: bool = False) -> pb.Round:
    return pb.Round(
        number=closed.round,
        rolled_back=rolled_back,
        closed_at=at,
        updates=closed.updates,
        abandoned=closed.abandoned,
        scores=_scores(closed.scores),
        sizes=[pb.SizeScores(size=label, scores=_scores(each)) for label, each in closed.tier_scores.items()],
        bytes_down=closed.bytes_down,
        bytes_up=closed.bytes_up,
        seconds=closed.seconds,
        server_seconds=closed.server_seconds,
        macs=closed.macs,
        warnings=closed.warnings,
    )


def _assignment(part: Part) -> pb.Assignment:
    return pb.Assignment(
        device=part.device,
        size=part.size,
        levers=part.levers,
        outcome=OUTCOMES[part.outcome],
        reason=part.reason,
        examples=part.examples,
        loss=part.loss,
        seconds=part.seconds,
        bytes_up=part.bytes_up,
    )
