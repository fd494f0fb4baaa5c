"""A run over real devices: a coordinator that agents on other machines join."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from diastole.experiments.errors import ExperimentError, NothingLearnedError
from diastole.experiments.home import Home
from diastole.experiments.report.trackers import track as tracking
from diastole.experiments.result import Result, result_of
from diastole.experiments.run import Run
from diastole.experiments.vectors import Vectors
from diastole.models.native.library import library
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.proto.address import Address, is_loopback
from diastole.server.errors import AddressError, RoundError
from diastole.server.events import Observer, RoundClosed
from diastole.server.overrides import Overrides
from diastole.server.security.access_service import AccessService
from diastole.server.security.audit import Audit
from diastole.server.security.operators import ADMIN_TOKEN, Operators, admin_token, by_token
from diastole.server.security.security import Security
from diastole.server.store.attendance import Attendance
from diastole.server.store.decisions import Decisions
from diastole.server.store.journal import Journal
from diastole.server.tiers import Tiers
from diastole.server.wire.admin_service import AdminServer, AdminService
from diastole.server.wire.board import RunOffer
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.hub import Hub
from diastole.server.wire.identity import Gate
from diastole.server.wire.link import RunLink

LONGEST_ROUND = 3600.0
"""Seconds after which a round without `rounds.deadline` ends."""

AWAKE = 0.5
"""Seconds after which whoever waits for a run looks whether there was a signal."""


class Serving:
    """A coordinator in a thread of its own, from the moment that it is made until its run is over.

    Attributes:
        run_id: of the run; it survives the process.
        folder: of the run, for its checkpoint and its result.
        port: where devices call.
        admin_port: where operators call; None without `admin`.
        enroll_port: where devices enroll; None without `enroll`.
        admin_token: the file with what operators on this machine show: a token, or off loopback a certificate.
        result: what the run came to, once it is over and has learned something.
        written: the files of the result.
        closed: rounds that an earlier process had closed.

    """

    def __init__(
        self,
        run: Run,
        listen: str,
        state: Path,
        *,
        admin: str | None = None,
        observers: Sequence[Observer] = (),
        track: Sequence[str] = (),
        lease: float = 30.0,
        credentials: grpc.ServerCredentials | None = None,
        fresh: bool = False,
        figures: Sequence[str] = ("png",),
        database: str = "",
        enroll: str | None = None,
        reflection: bool = False,
        announce: Callable[["Serving"], None] = lambda _: None,
    ) -> None:
        """Start serving; an unfinished run of the same experiment in the folder `state` goes on.

        Args:
            run: what is run.
            listen: where devices call, `host:port`; port 0 for any free one.
            state: the coordinator's folder: its database, accepted contributions, and a folder for each run.
            admin: where operators call, likewise; off loopback only with `enroll`; None for nowhere.
            observers: are told of everything.
            track: names of trackers (`experiments/report/trackers.py`), which write curves into the run's folder.
            lease: seconds of silence after which a device is lost.
            credentials: for TLS; None for plain text.
            fresh: forget an unfinished run in the folder.
            figures: kinds of pictures.
            database: URL of the database, as SQLAlchemy takes it; by default SQLite in the folder.
            enroll: where devices enroll, `host:port`; the coordinator is then its own authority, and takes enrolled
                devices only. None for no enrollment.
            reflection: let the admin service describe itself to whoever may call it.
            announce: told where devices and operators call, before anything is told of the run.

        Raises `NoAddressError`, `AddressError`, `FolderError` if another coordinator has the folder, `StoreError`, or
        `ExperimentError` if the folder has an unfinished run of another experiment.

        """
        for address in filter(None, (listen, admin, enroll)):
            Address.parse(address, listening=True)
        if admin and not enroll and not is_loopback(admin):
            raise AddressError(
                f"admin {admin} would let other machines stop this run; a loopback address is accepted, or enroll, "
                "with which the coordinator certifies its operators"
            )
        self.written = list[Path]()
        self.result: Result | None = None
        self._run, self._figures = run, tuple(figures)
        self._error: BaseException | None = None
        self._suspended = False
        with ExitStack() as stack:
            self._home = home = Home(state, run, database=database, fresh=fresh)
            stack.callback(home.close)
            self.run_id, self.folder = home.run_id, home.path
            closed = home.snapshot.closed if home.snapshot else ()
            self.closed = len(closed)
            objects = home.folder.objects / home.run_id
            audit = Audit(home.folder.place, home.store)
            self._security = security = Security(home.folder, audit) if enroll else None
            journal = Journal(home.store, home.run_id, objects, self.closed)
            self._hub = Hub(
                lease=lease,
                spool=state,
                gate=security.gate if security else Gate(),
                attendance=Attendance(home.store, home.folder.place),
            )
            # Whoever has closed it before has told the devices something better.
            stack.callback(self._hub.close, "the coordinator failed", failed=True)
            offer = RunOffer(
                self.run_id,
                run.model.to_json(),
                schema_hash(initial_state(run.model, 0)),
                tiers_of(run),
                run.experiment.coding,
                run.metrics[0] if run.metrics else "",
            )
            self._link = RunLink(
                self._hub, offer, run.model, seed=run.experiment.seed, journal=journal, longest=LONGEST_ROUND
            )
            stack.callback(self._link.close)
            home.checkpoint.extra = self._link.outgoing.memory
            log = EventLog()
            self._coordinator = run.coordinator(
                self._link, (log, *observers), run_id=self.run_id, keep=home.checkpoint.keep, journal=journal
            )
            specs = [size.spec for size in self._coordinator.sizes]
            self._coordinator.observe(Vectors(run.model, specs, self._link.devices))
            if home.snapshot is not None:
                self._coordinator.resume(home.snapshot)
                self._link.outgoing.resume(home.snapshot.extra, home.snapshot.tensors)
            decisions = Decisions(home.store, home.folder.place)
            decisions.begin(self.run_id, self._coordinator.suspensions, lambda: len(self._coordinator.closed))
            self.port = self._hub.open(listen, security.credentials if security else credentials)
            self.admin_port: int | None = None
            self.admin_token = home.folder.path / ADMIN_TOKEN
            self.enroll_port = stack.enter_context(security.serve(enroll)) if security and enroll else None
            if admin is not None:
                service = AdminService(self.run_id, self._coordinator, self._link, log, self.folder)
                access = AccessService(audit, security.enrollment if security else None, decisions, self._hub.dismiss)
                if security and not is_loopback(admin):
                    operators, shown = security.operators(self.admin_token), security.credentials
                else:
                    operators, shown = Operators(by_token(admin_token(self.admin_token)), audit), None
                server = AdminServer(admin, service, access, operators, shown, reflection=reflection)
                # Operators are answered until the last device has been told.
                stack.callback(server.close)
                self.admin_port = server.port
            for tracker in stack.enter_context(tracking(list(track), run.experiment, self.folder, closed)):
                self._coordinator.observe(tracker)
            self._open = stack.pop_all()
        # Compiled while the devices join, if it must be; folding does not wait for it.
        threading.Thread(target=library, name="diastole-library", daemon=True).start()
        announce(self)
        self._thread = threading.Thread(target=self._play, name="diastole-coordinator", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> Result:
        """Wait until the run is over and its result is written, and return the result.

        Raises `RoundError` if the devices stayed away, what had been learned before being written all the same,
        `NothingLearnedError` if not one round counted, and `ExperimentError` if it takes longer than `seconds`.
        """
        until = time.monotonic() + (math.inf if seconds is None else seconds)
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            # The system may give a signal to another thread; this one has to run for its handler to be called.
            self._thread.join(min(left, AWAKE))
        if self._thread.is_alive():
            raise ExperimentError(f"the run was not over after {seconds:g} s")
        if self._error is not None:
            raise self._error
        if self.result is None:
            raise ExperimentError("the run has no result")
        return self.result

    def invite(self, name: str, seconds: float = 0.0) -> str:
        """Return a token with which a device joins for the first time; it counts once, by default for an hour.

        Raises `FolderError` if it cannot be kept, and `AddressError` for a coordinator that enrolls nobody.
        """
        if self._security is None:
            raise AddressError("this coordinator enrolls nobody; enroll says where devices enroll")
        return self._security.invite(name, seconds)

    def stop(self, *, now: bool = False) -> None:
        """End the run after the current round, or abandon that round too; it can go on later from its checkpoint."""
        self._coordinator.stop(now=now)

    def suspend(self, seconds: float | None = None) -> bool:
        """End at once, like a kill, but in order: the round stays open, and agents wait for the next process.

        Return whether the run was over within so many seconds, by default as many as it takes; if not, the server is
        at work of its own, and the process may be ended all the same: nothing that was accepted is lost.
        """
        self._suspended = True
        self._link.suspend()
        self._coordinator.suspend()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._thread.is_alive():
            return
        if error is not None and not isinstance(error, Exception):
            # Ctrl-C ends this process, and not the round: as with the command, the next process goes on with it.
            self.suspend()
        else:
            self.stop(now=True)
            self._thread.join()

    def _play(self) -> None:
        try:
            with self._open:
                try:
                    self._coordinator.run()
                except RoundError as error:
                    # Devices that went away must not take with them what was learned before.
                    self._error = error
                coordinator = self._coordinator
                coordinator.ledger.meet(self._link.seen())
                if self._error is None and not coordinator.learned:
                    self._error = NothingLearnedError(_nothing(coordinator.closed))
                elif self._error is None and coordinator.failed:
                    self._error = RoundError(coordinator.failed)
                # The agents are told before anybody is told the result.
                if self._suspended and not self._over:
                    self._hub.close("")
                self._link.close(str(self._error or ""))
                self._hub.close()
                self._finish()
        except BaseException as error:  # noqa: BLE001 (raised by `wait`, in the caller's thread)
            self._error = error

    @property
    def _over(self) -> bool:
        """Whether nothing is left to go on with."""
        coordinator = self._coordinator
        ended = bool(coordinator.early or coordinator.failed)
        return ended or len(coordinator.closed) >= self._run.experiment.rounds.count

    def _finish(self) -> None:
        """Write what the run came to."""
        coordinator, home = self._coordinator, self._home
        if coordinator.learned:
            self.result = result_of(self._run, coordinator, run_id=self.run_id)
            self.written = self.result.save(self.folder, self._figures)
            home.folder.point(self.run_id)
        if self._over:
            home.finish(learned=coordinator.learned and not coordinator.failed)


def _nothing(closed: Sequence[RoundClosed]) -> str:
    """Say why nothing was learned."""
    if not closed:
        return "the run was stopped before its first round was over; nothing was learned"
    return f"nothing was learned: no round counted of {len(closed)}, the last one because {closed[-1].abandoned}"


def tiers_of(run: Run) -> Tiers:
    """Return the tiers that devices are placed in, from that of the largest devices to that of the smallest."""
    tiers = sorted(run.experiment.tiers.items(), key=lambda item: -item[1].width)
    return Tiers({name: tier.names for name, tier in tiers}, Overrides(run.experiment.overrides))
