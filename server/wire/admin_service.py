"""The gRPC service that operators call; proto/diastole/v1/admin.proto is its contract."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import grpc

from diastole.models.levers import NO_LEVERS
from diastole.models.metrics import shown, title
from diastole.proto.words import REASON_KEY, Reason
from diastole.server.checkpoints import write_state
from diastole.server.coordinator import Coordinator
from diastole.server.errors import AddressError
from diastole.server.ledger import Account
from diastole.server.security.access_service import AccessService
from diastole.server.security.operators import Operators
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.health import add_health, add_reflection
from diastole.server.wire.link import RunLink
from diastole.server.wire.options import OPERATOR_OPTIONS
from diastole.server.wire.sessions import Session
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc

WATCHERS = 16
OPERATED = ("diastole.v1.AdminService", "diastole.v1.AccessService")
PAGE_BYTES = 1 << 20
"""Of one answer about devices; a caller accepts four times as much."""


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Answers operators about one run and carries out what they ask."""

    def __init__(
        self,
        run_id: str,
        coordinator: Coordinator,
        link: RunLink,
        log: EventLog,
        folder: Path,
    ) -> None:
        """Serve `coordinator`.

        Args:
            run_id: of the run.
            coordinator: of the run.
            link: to its devices.
            log: observes the coordinator.
            folder: checkpoints go below it.

        """
        self._run_id = run_id
        self._coordinator = coordinator
        self._link = link
        self._log = log
        self._folder = folder
        self._specs = {size.spec.label: size.spec.to_json() for size in coordinator.sizes}
        self._writing = threading.Lock()
        self._watchers = threading.Semaphore(WATCHERS)

    def ListRuns(self, request: pb.ListRunsRequest, context: grpc.ServicerContext) -> pb.ListRunsReply:  # noqa: N802
        """Return the one run there is."""
        return pb.ListRunsReply(runs=[self._run()])

    def ListDevices(  # noqa: N802
        self, request: pb.ListDevicesRequest, context: grpc.ServicerContext
    ) -> pb.ListDevicesReply:
        """Return the devices that are remembered, a page of them."""
        self._check_run(request.run_id, context)
        sessions, reply = self._link.sessions.all(), pb.ListDevicesReply()
        for name in sorted(name for name in sessions if name > request.after):
            device = self._device(sessions[name])
            if reply.devices and reply.ByteSize() + device.ByteSize() > PAGE_BYTES:
                reply.more = True
                break
            reply.devices.append(device)
        return reply

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainReply:  # noqa: N802
        """Say which sizes fit a device, and why the others do not."""
        self._check_run(request.run_id, context)
        session = self._link.sessions.all().get(request.name)
        if session is None:
            text = f"no device {request.name!r} has joined; diastole admin devices lists those that have"
            _refuse(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_DEVICE, text)
        planner, name, profile = self._coordinator.planner, session.name, session.profile
        fitting = planner.fits(name, profile) if profile.examples else ()
        reply = pb.ExplainReply()
        for size in self._coordinator.sizes:
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
        """Follow the run."""
        self._check_run(request.run_id, context)
        if not self._watchers.acquire(blocking=False):
            _refuse(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.WATCHERS, f"{WATCHERS} others are watching already"
            )
        try:
            yield from self._log.follow(request.after, context)
        finally:
            self._watchers.release()

    def Checkpoint(self, request: pb.CheckpointRequest, context: grpc.ServicerContext) -> pb.CheckpointReply:  # noqa: N802
        """Write the global model."""
        self._check_run(request.run_id, context)
        number, state = self._coordinator.last
        path = self._folder / "checkpoints" / f"round-{number:05d}.safetensors"
        with self._writing:
            write_state(path, state)
        return pb.CheckpointReply(path=str(path.resolve()), round=number)

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopReply:  # noqa: N802
        """End the run."""
        self._check_run(request.run_id, context)
        self._coordinator.stop(now=request.now)
        return pb.StopReply(run=self._run())

    def _run(self) -> pb.Run:
        coordinator, closed = self._coordinator, self._coordinator.closed
        state = pb.Run.STATE_RUNNING if self._log.begun else pb.Run.STATE_WAITING
        if self._log.over:
            state = pb.Run.STATE_STOPPED if coordinator.stopping else pb.Run.STATE_FINISHED
        metric = coordinator.settings.metrics[0]
        scores = next((item.scores for item in reversed(closed) if item.scores), {})
        return pb.Run(
            run_id=self._run_id,
            state=state,
            method=coordinator.method.whole.method,
            round=len(closed),
            rounds=coordinator.settings.rounds.count,
            accuracy=scores.get("accuracy"),
            scores=scores,
            metric=metric,
            standing=f"{title(metric)} {shown(metric, scores[metric])}" if scores else "",
            devices_online=len(self._link.devices()),
            elapsed_seconds=self._log.seconds,
            quarantined=sum(account.quarantined for account in list(coordinator.ledger.values())),
        )

    def _device(self, session: Session) -> pb.Device:
        account = self._coordinator.ledger.get(session.name, Account())
        state = pb.Device.STATE_IDLE
        if session.left:
            state = pb.Device.STATE_LEFT
        elif session.lost:
            state = pb.Device.STATE_LOST
        elif self._link.owes(session.name):
            state = pb.Device.STATE_TRAINING
        return pb.Device(
            name=session.name,
            state=state,
            profile=session.profile.message(session.agent_version),
            spec_json=self._specs.get(account.spec, ""),
            updates_accepted=account.accepted,
            updates_quarantined=account.quarantined,
            bytes_down=session.bytes_down,
            bytes_up=session.bytes_up,
            train_seconds=account.seconds,
            train_macs=account.macs,
            idle_seconds=self._link.sessions.idle(session),
            kept_out=self._coordinator.planner.barred(session.name),
        )

    def _check_run(self, run_id: str, context: grpc.ServicerContext) -> None:
        if run_id not in ("", self._run_id):
            text = f"no run {run_id!r}; this coordinator has {self._run_id}"
            _refuse(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_RUN, text)


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: Reason, message: str) -> NoReturn:
    context.set_trailing_metadata(((REASON_KEY, reason),))
    context.abort(code, message)
    raise AssertionError("abort returned")


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
