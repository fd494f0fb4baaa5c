"""A run over real devices: a coordinator that agents on other machines join."""

import logging
import math
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from diastole.experiments.checkpoint import Checkpoint
from diastole.experiments.errors import ExperimentError
from diastole.experiments.report.report import holds_finished
from diastole.experiments.report.trackers import track as tracking
from diastole.experiments.result import Result, result_of
from diastole.experiments.run import Run
from diastole.models.native.library import library
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.server.errors import RoundError
from diastole.server.events import Observer
from diastole.server.tiers import Tiers
from diastole.server.wire.admin_service import AdminServer, AdminService, EventLog
from diastole.server.wire.link import GrpcLink

LOG = logging.getLogger(__name__)
CHECKPOINT = "run.checkpoint"
AWAKE = 0.5
"""Seconds after which whoever waits for a run looks whether there was a signal."""


class Serving:
    """A coordinator in a thread of its own, from the moment that it is made until its run is over.

    Attributes:
        run_id: of this process's part of the run.
        port: where devices call.
        admin_port: where operators call; None without `admin`.
        result: what the run came to, once it is over and a round was closed.
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
    ) -> None:
        """Start serving; an unfinished run of the same experiment in the folder `state` goes on.

        Args:
            run: what is run.
            listen: where devices call, `host:port`; port 0 for any free one.
            state: folder for the checkpoint, uploads under way, and the result.
            admin: where operators call, likewise; None for nowhere.
            observers: are told of everything.
            track: names of trackers (`experiments/report/trackers.py`), which write curves into the folder.
            lease: seconds of silence after which a device is lost.
            credentials: for TLS; None for plain text.
            fresh: forget an unfinished run in the folder.
            figures: kinds of pictures.

        Raises `AddressError`, or `ExperimentError` if the folder has an unfinished run of another experiment.

        """
        self.run_id, self.written = uuid.uuid4().hex[:12], list[Path]()
        self.result: Result | None = None
        self._run, self._state, self._figures = run, state, tuple(figures)
        state.mkdir(parents=True, exist_ok=True)
        self._checkpoint = Checkpoint(state / CHECKPOINT, run.experiment, run.dataset.digest)
        if fresh:
            self._checkpoint.remove()
        snapshot = self._checkpoint.check()
        closed = snapshot.closed if snapshot else ()
        self.closed = len(closed)
        self._error: BaseException | None = None
        with ExitStack() as stack:
            self._link = GrpcLink(
                listen,
                self.run_id,
                run.model,
                schema_hash(initial_state(run.model, 0)),
                tiers=tiers_of(run),
                coding=run.experiment.coding,
                seed=run.experiment.seed,
                lease=lease,
                credentials=credentials,
                spool=state,
                metric=run.metrics[0] if run.metrics else "",
            )
            stack.callback(self._link.close)
            self._checkpoint.extra = self._link.outgoing.memory
            log = EventLog()
            self._coordinator = run.coordinator(
                self._link, (log, *observers), run_id=self.run_id, keep=self._checkpoint.keep
            )
            if snapshot is not None:
                self._coordinator.resume(snapshot)
                self._link.outgoing.resume(snapshot.extra, snapshot.tensors)
            self.port = self._link.port
            self.admin_port: int | None = None
            if admin is not None:
                service = AdminService(self.run_id, self._coordinator, self._link, log, state)
                operators = AdminServer(admin, service)
                # Operators are answered until the last device has been told.
                stack.callback(operators.close)
                self.admin_port = operators.port
            # Behind all that can fail: the curves of an earlier run are removed here.
            for tracker in stack.enter_context(tracking(list(track), run.experiment, state, closed)):
                self._coordinator.observe(tracker)
            self._open = stack.pop_all()
        # Compiled while the devices join, if it must be; folding does not wait for it.
        threading.Thread(target=library, name="diastole-library", daemon=True).start()
        self._thread = threading.Thread(target=self._play, name="diastole-coordinator", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> Result:
        """Wait until the run is over and its result is written, and return the result.

        Raises `RoundError` if the devices stayed away, what had been learned before being written all the same, and
        `ExperimentError` if it takes longer than `seconds`.
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

    def stop(self, *, now: bool = False) -> None:
        """End the run after the current round, or abandon that round too; it can go on later from its checkpoint."""
        self._coordinator.stop(now=now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
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
                self._coordinator.ledger.meet(self._link.seen())
                # The agents are told that the run is over before anybody is told its result.
                self._link.close()
                if self._error is None or self._coordinator.closed:
                    self._finish()
        except BaseException as error:  # noqa: BLE001 (raised by `wait`, in the caller's thread)
            self._error = error

    def _finish(self) -> None:
        """Write what the run came to."""
        result = result_of(self._run, self._coordinator)
        self.result = result
        if result.finished or not holds_finished(self._state):
            self.written = result.save(self._state, self._figures)
        else:
            LOG.warning("%s keeps the result of a finished run; this one is unfinished", self._state)
        if result.finished:
            self._checkpoint.finish()


def tiers_of(run: Run) -> Tiers:
    """Return the tiers that devices are placed in, from that of the largest devices to that of the smallest."""
    tiers = sorted(run.experiment.tiers.items(), key=lambda item: -item[1].width)
    return Tiers({name: tier.names for name, tier in tiers})
