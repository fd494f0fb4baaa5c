"""The gRPC service that operators call; proto/diastole/v1/admin.proto is its contract."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from diastole.models.levers import NO_LEVERS
from diastole.proto.errors import DiastoleError
from diastole.proto.words import Reason, plain
from diastole.server.coordinator import Coordinator
from diastole.server.errors import AddressError
from diastole.server.ledger import Account
from diastole.server.link import Traffic
from diastole.server.security.access_service import AccessService
from diastole.server.security.operators import Operators
from diastole.server.store.labels import Labels
from diastole.server.wire.health import add_health, add_reflection
from diastole.server.wire.listed import ListedRun, named, stored
from diastole.server.wire.options import OPERATOR_OPTIONS
from diastole.server.wire.refusal import LONGEST_MESSAGE, refuse_operator
from diastole.server.wire.round_service import RoundService
from diastole.server.wire.sessions import Session, Sessions
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc

WATCHERS = 16
OPERATED = tuple(f"diastole.v1.{name}Service" for name in ("Admin", "Access", "Round", "Log"))
MOST_DOCUMENT = 1_000_000
"""Characters of an experiment that an operator sends."""
PAGE_BYTES = 1 << 20
"""Of one answer about devices; a caller accepts four times as much."""


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Answers operators about the runs of a coordinator and carries out what they ask."""

    def __init__(
        self,
        runs: Sequence[ListedRun],
        sessions: Sessions,
        submit: Callable[[str, bool], ListedRun] | None = None,
        labels: Labels | None = None,
    ) -> None:
        """Serve operators.

        Args:
            runs: of the coordinator, in their order; it may change.
            sessions: of the devices.
            submit: puts the run of an experiment, a JSON document, into the queue, and says whether it is held; None
                for a coordinator without one. Raises `DiastoleError` if that cannot be.
            labels: of the devices.

        """
        self._runs, self._sessions, self._submit = runs, sessions, submit
        self._labels = labels
        self._watchers = threading.Semaphore(WATCHERS)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsReply:  # noqa: N802
        """Return the runs in their order."""
        return pb.ListRunsReply(runs=[run.message() for run in list(self._runs)])

    def ShowRun(self, request: pb.ShowRunRequest, context: grpc.ServicerContext) -> pb.ShowRunReply:  # noqa: N802
        """Return one run."""
        return pb.ShowRunReply(run=self._run(request.run_id, context).message())

    def ListDevices(  # noqa: N802
        self, request: pb.ListDevicesRequest, context: grpc.ServicerContext
    ) -> pb.ListDevicesReply:
        """Return the devices that are remembered, a page of them."""
        run, sessions, reply = self._run(request.run_id, context), self._sessions.all(), pb.ListDevicesReply()
        specs = _specs(run)
        for name in sorted(name for name in sessions if name > request.after):
            device = self._device(run, sessions[name], specs)
            if reply.devices and reply.ByteSize() + device.ByteSize() > PAGE_BYTES:
                reply.more = True
                break
            reply.devices.append(device)
        return reply

    def ShowDevice(self, request: pb.ShowDeviceRequest, context: grpc.ServicerContext) -> pb.ShowDeviceReply:  # noqa: N802
        """Return one device."""
        run, session = self._run(request.run_id, context), self._session(request.name, context)
        return pb.ShowDeviceReply(device=self._device(run, session, _specs(run)))

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainReply:  # noqa: N802
        """Say which sizes fit a device, and why the others do not."""
        run = self._run(request.run_id, context)
        coordinator, session = self._begun(run, context), self._session(request.name, context)
        planner, name, profile = coordinator.planner, session.name, session.serves.get(run.run_id, session.profile)
        fitting = planner.fits(name, profile) if profile.examples else ()
        reply = pb.ExplainReply()
        for size in coordinator.sizes:
            levers = planner.levers(name, profile, size) if size in fitting else NO_LEVERS
            reply.sizes.add(
                size=size.spec.label,
                fits=size in fitting,
                why=planner.why_not(name, profile, size),
                levers=levers.used,
                seconds=planner.seconds(name, profile, size, levers),
                correction=planner.correction(name, size),
            )
        return reply

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.Event]:  # noqa: N802
        """Follow a run."""
        log = self._run(request.run_id, context, alone=True).log
        if not self._watchers.acquire(blocking=False):
            refuse_operator(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.WATCHERS, f"{WATCHERS} others are watching already"
            )
        try:
            yield from log.follow(request.after, context)
        finally:
            self._watchers.release()

    def Pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.PauseReply:  # noqa: N802
        """Let no round of a run begin."""
        run = self._run(request.run_id, context, alone=True)
        if run.over or run.log.over:
            text = f"run {run.run_id} is over"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.UNKNOWN_RUN, text)
        with stored(context):
            run.control.pause()
        return pb.PauseReply(run=run.message())

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.ResumeReply:  # noqa: N802
        """Let a run go on that is paused."""
        return pb.ResumeReply(run=self._proceed(request.run_id, context, "is not paused"))

    def Start(self, request: pb.StartRequest, context: grpc.ServicerContext) -> pb.StartReply:  # noqa: N802
        """Let a run begin that is held."""
        run = self._run(request.run_id, context, alone=True)
        if run.coordinator is not None:
            text = f"run {run.run_id} has begun; diastole admin runs resume lets one go on that is paused"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.NOT_PAUSED, text)
        return pb.StartReply(run=self._proceed(request.run_id, context, "is not held"))

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopReply:  # noqa: N802
        """End a run."""
        run = self._run(request.run_id, context, alone=True)
        run.control.stop(request.now)
        return pb.StopReply(run=run.message())

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:  # noqa: N802
        """Put a run into the queue."""
        if self._submit is None:
            text = "this coordinator takes no experiments"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.EXPERIMENT, text)
        if len(request.experiment_json) > MOST_DOCUMENT:
            text = f"an experiment of {len(request.experiment_json)} characters; {MOST_DOCUMENT} at most are accepted"
            refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.EXPERIMENT, text)
        try:
            return pb.SubmitReply(run=self._submit(request.experiment_json, request.held).message())
        except DiastoleError as error:
            refuse_operator(
                context, grpc.StatusCode.INVALID_ARGUMENT, Reason.EXPERIMENT, plain(str(error), LONGEST_MESSAGE)
            )

    def _proceed(self, run_id: str, context: grpc.ServicerContext, otherwise: str) -> pb.Run:
        run = self._run(run_id, context, alone=True)
        if not run.control.held:
            text = f"run {run.run_id} {otherwise}"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.NOT_PAUSED, text)
        with stored(context):
            run.control.proceed()
        return run.message()

    def _session(self, name: str, context: grpc.ServicerContext) -> Session:
        session = self._sessions.named(name)
        if session is None:
            text = f"no device {name!r} has joined; diastole admin devices list shows those that have"
            refuse_operator(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_DEVICE, text)
        return session

    def _device(self, run: ListedRun, session: Session, specs: Mapping[str, str]) -> pb.Device:
        account = run.coordinator.ledger.get(session.name, Account()) if run.coordinator else Account()
        moved = session.moved.get(run.run_id, Traffic())
        state = pb.Device.STATE_IDLE
        if session.left:
            state = pb.Device.STATE_LEFT
        elif session.lost:
            state = pb.Device.STATE_LOST
        elif any(each.link.owes(session.name) for each in list(self._runs) if each.link):
            state = pb.Device.STATE_TRAINING
        return pb.Device(
            name=session.name,
            state=state,
            profile=session.profile.message(session.agent_version),
            spec_json=specs.get(account.spec, ""),
            updates_accepted=account.accepted,
            updates_quarantined=account.quarantined,
            bytes_down=moved.bytes_down,
            bytes_up=moved.bytes_up,
            train_seconds=account.seconds,
            train_macs=account.macs,
            idle_seconds=self._sessions.idle(session),
            kept_out=run.coordinator.planner.barred(session.name) if run.coordinator else "",
            labels=self._labels.of(session.name) if self._labels else {},
        )

    def _run(self, run_id: str, context: grpc.ServicerContext, *, alone: bool = False) -> ListedRun:
        return named(list(self._runs), run_id, context, alone=alone)

    def _begun(self, run: ListedRun, context: grpc.ServicerContext) -> Coordinator:
        if run.coordinator is None:
            how = f"is over; what it came to is in {run.folder}" if run.over else "has not begun"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.UNKNOWN_RUN, f"run {run.run_id} {how}")
        return run.coordinator


def _specs(run: ListedRun) -> Mapping[str, str]:
    """Return the sub-models on offer as JSON, by label."""
    return {size.spec.label: size.spec.to_json() for size in run.coordinator.sizes} if run.coordinator else {}


class AdminServer:
    """Serves an `AdminService` on an address of its own, for operators only."""

    def __init__(
        self,
        address: str,
        service: AdminService,
        access: AccessService | None = None,
        operators: Operators | None = None,
        credentials: grpc.ServerCredentials | None = None,
        *,
        rounds: RoundService | None = None,
        logs: admin_pb2_grpc.LogServiceServicer | None = None,
        reflection: bool = False,
    ) -> None:
        """Start serving, in plain text without `credentials`; everybody without `operators`.

        With `reflection` it describes its services. Raises `AddressError` if the address cannot be listened on.
        """
        workers = ThreadPoolExecutor(WATCHERS + 4, "diastole-admin")
        self._server = grpc.server(workers, interceptors=[operators] if operators else [], options=OPERATOR_OPTIONS)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        if access is not None:
            admin_pb2_grpc.add_AccessServiceServicer_to_server(access, self._server)  # type: ignore[no-untyped-call]
        if rounds is not None:
            admin_pb2_grpc.add_RoundServiceServicer_to_server(rounds, self._server)  # type: ignore[no-untyped-call]
        if logs is not None:
            admin_pb2_grpc.add_LogServiceServicer_to_server(logs, self._server)  # type: ignore[no-untyped-call]
        add_health(self._server, *OPERATED)
        if reflection:
            add_reflection(self._server)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise AddressError.taken(address) from None
        self._server.start()

    def close(self) -> None:
        """Stop serving, which ends every watch."""
        self._server.stop(grace=0.5).wait()
