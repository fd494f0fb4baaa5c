"""Runs over real devices: a coordinator that agents on other machines join."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from diastole.experiments.entry import Entry, made
from diastole.experiments.errors import ExperimentError
from diastole.experiments.home import Home
from diastole.experiments.operating import operated
from diastole.experiments.result import Result
from diastole.experiments.run import Run
from diastole.experiments.web import Dashboard
from diastole.models.native.fold import PART
from diastole.models.native.library import library
from diastole.models.seeds import reference_plan
from diastole.proto.about import about
from diastole.proto.address import Address, is_loopback
from diastole.proto.errors import DiastoleError
from diastole.server.errors import AddressError
from diastole.server.events import Observer
from diastole.server.observe.observing import Observing
from diastole.server.security.audit import Audit
from diastole.server.security.operators import ADMIN_TOKEN
from diastole.server.store.attendance import Attendance
from diastole.server.store.decisions import Decisions
from diastole.server.web.config import WebConfig
from diastole.server.wire.device_service import OVER
from diastole.server.wire.hub import Hub
from diastole.server.wire.identity import Gate
from diastole.server.wire.listed import ListedRun

AWAKE = 0.5
"""Seconds after which whoever waits for a run looks whether there was a signal."""

MOST_QUEUED = 200
"""Runs that are under way or wait for their turn: agents accept no longer list."""

KEPT_CHECKPOINTS = 5
KEPT_OVER = 8
"""Runs that are over and still listed, with their events, beside those that were asked for at the start."""


class Serving:
    """A coordinator in a thread of its own, from the moment that it is made until its runs are over.

    Attributes:
        entries: its queue of runs.
        port: where devices call.
        admin_port: where operators call; None without `admin`.
        enroll_port: where devices enroll; None without `enroll`.
        web: the dashboard; None without `web`.
        web_port: where browsers call; likewise.
        admin_token: the file with what operators on this machine show: a token, or off loopback a certificate.

    """

    def __init__(
        self,
        runs: Run | Sequence[Run],
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
        side_by_side: int = 1,
        keep: bool = False,
        kept: int = KEPT_CHECKPOINTS,
        watch: Callable[[Entry], Sequence[Observer]] = lambda _: (),
        ended: Callable[[Entry], None] = lambda _: None,
        web: WebConfig | None = None,
    ) -> None:
        """Start serving; what is unfinished of the same experiments in the folder `state` goes on.

        Args:
            runs: what is run, in order.
            listen: where devices call, `host:port`; port 0 for any free one.
            state: the coordinator's folder: its database, accepted contributions, and a folder for each run.
            admin: where operators call, likewise; off loopback only with `enroll`; None for nowhere.
            observers: are told of everything.
            track: names of trackers (`experiments/report/trackers.py`), which write curves into a run's folder.
            lease: seconds of silence after which a device is lost.
            credentials: for TLS; None for plain text.
            fresh: forget unfinished runs in the folder.
            figures: kinds of pictures.
            database: URL of the database, as SQLAlchemy takes it; by default SQLite in the folder.
            enroll: where devices enroll, `host:port`; the coordinator is then its own authority, and takes enrolled
                devices only. None for no enrollment.
            reflection: let the admin service describe itself to whoever may call it.
            announce: told where devices and operators call, before anything is told of a run.
            side_by_side: runs that are under way at a time; each device does one task at a time all the same.
            keep: wait for further experiments of operators when the queue is empty, until `stop`.
            kept: of so many rounds of each run, the last ones, checkpoints are kept.
            watch: returns further observers, of one run.
            ended: told of each run whose turn is over, one at a time.
            web: where browsers find the dashboard; None for none.

        Raises `NoAddressError`, `AddressError`, `FolderError` if another coordinator has the folder, `StoreError`, or
        `ExperimentError` if the folder has an unfinished run of another experiment.

        """
        for address in filter(None, (listen, admin, enroll, web.address if web else None)):
            Address.parse(address, listening=True)
        if admin and not enroll and not is_loopback(admin):
            raise AddressError(
                f"admin {admin} would let other machines stop this run; a loopback address is accepted, or enroll, "
                "with which the coordinator certifies its operators"
            )
        if not isinstance(runs, Run) and len(runs) > MOST_QUEUED:
            raise ExperimentError(f"{len(runs)} experiments; {MOST_QUEUED} at most are accepted")
        self._observers, self._track, self._figures = tuple(observers), tuple(track), tuple(figures)
        self._watch, self._ended, self._most, self._keep = watch, ended, side_by_side, keep
        self._error: BaseException | None = None
        self._observing, self._ending = Observing(), False
        self._suspended = False
        self._changed, self._telling = threading.Condition(), threading.Lock()
        self._active = dict[Entry, threading.Thread | None]()
        with ExitStack() as stack:
            stack.callback(self._observing.close)
            self._home = home = Home(state, database, kept)
            stack.callback(home.close)
            berths = home.plan([runs] if isinstance(runs, Run) else runs, made, fresh=fresh)
            self.entries = [Entry(berth, home, self._drop, self._wake) for berth in berths]
            self._listed = [entry.listed for entry in self.entries]
            audit = Audit(home.folder.place, home.store)
            self._security = security = home.security(audit) if enroll else None
            self._hub = Hub(
                lease=lease,
                spool=state,
                gate=security.gate if security else Gate(),
                attendance=Attendance(home.store, home.folder.place),
                keeps=keep,
                over=home.over(),
            )
            # Whoever has closed it before has told the devices something better.
            stack.callback(self._hub.close, "the coordinator failed", failed=True)
            certified = bool(security and admin and not is_loopback(admin))
            self.web: Dashboard | None = None
            if web is not None:
                sessions = self._hub.sessions
                self.web = Dashboard(
                    web, home, self._listed, sessions, audit, security, certified=certified, scrape=self.metrics
                )
            self._decisions = Decisions(home.store, home.folder.place)
            for entry in self._queued:
                self._hub.offer(entry.offer)
            for entry in self._waiting[:side_by_side]:
                self._begin(entry)
            self.port = self._hub.open(listen, security.credentials if security else credentials)
            self.admin_port: int | None = None
            self.admin_token = home.folder.path / ADMIN_TOKEN
            self.enroll_port = stack.enter_context(security.serve(enroll)) if security and enroll else None
            if admin is not None:
                parts = self._listed, home, self._hub, audit, self._decisions, security, self.submit
                server = operated(admin, *parts, recent=self._observing.recent, reflection=reflection)
                # Operators are answered until the last device has been told.
                stack.callback(server.close)
                self.admin_port = server.port
            self.web_port: int | None = None
            if self.web is not None:
                page = self.web.open()
                stack.callback(page.close)
                self.web_port = page.port
            self._open = stack.pop_all()
        # Compiled while the devices join, if it must be; folding does not wait for it.
        threading.Thread(target=library, args=(PART,), name="diastole-library", daemon=True).start()
        announce(self)
        self._thread = threading.Thread(target=self._serve, name="diastole-coordinator", daemon=True)
        self._thread.start()

    @property
    def first(self) -> Entry:
        """The first run that is not over from an earlier process, or else the last one."""
        return next((entry for entry in self.entries if not entry.berth.over), self.entries[-1])

    @property
    def run_id(self) -> str:
        """Name of the first run; it survives the process."""
        return self.first.berth.run_id

    @property
    def folder(self) -> Path:
        """Folder of the first run, for its checkpoint and its result."""
        return self.first.berth.path

    @property
    def closed(self) -> int:
        """Rounds of the first run that an earlier process had closed."""
        return self.first.closed

    @property
    def result(self) -> Result | None:
        """What the first run came to, once it is over and has learned something."""
        return self.first.result

    @property
    def results(self) -> list[Result | None]:
        """What each run came to, in their order; None for one that is not over, or has learned nothing."""
        return [entry.result for entry in self.entries]

    @property
    def written(self) -> Sequence[Path]:
        """The files of that result."""
        return self.first.written

    def wait(self, seconds: float | None = None) -> Result:
        """Wait until every run is over and its result is written, and return the first one's result.

        Raises, for the first run that failed, `RoundError` if the devices stayed away, what had been learned before
        being written all the same, and `NothingLearnedError` if not one round counted; and `ExperimentError` if it
        takes longer than `seconds`.
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

    def submit(self, document: str, held: bool = False) -> ListedRun:
        """Put the run of an experiment, a JSON document, into the queue, behind all others.

        One that is `held` does not begin before an operator starts it. Raises `DiastoleError` if it cannot be run, or
        if this coordinator is about to end.
        """
        run = made(document)
        with self._changed:
            if self._ending or not (self._keep or self._active or self._queued):
                raise ExperimentError("this coordinator is about to end")
            if len(self._active) + len(self._queued) >= MOST_QUEUED:
                raise ExperimentError(f"{MOST_QUEUED} runs are queued, which is the most")
            entry = Entry(self._home.add(run, document, held=held), self._home, self._drop, self._wake)
            self.entries.append(entry)
            self._listed.append(entry.listed)
            self._hub.offer(entry.offer)
            self._changed.notify_all()
        return entry.listed

    def metrics(self) -> tuple[bytes, str]:
        """Return what Prometheus reads, and its type. Raises `ExtraError` without its library."""
        return self._observing.metrics(self._hub, self._listed, self._home.folder.path, self._security)

    def stop(self, *, now: bool = False) -> None:
        """End the runs that are under way after the current round, or abandon that round too; begin no other.

        They can go on later from their checkpoints.
        """
        with self._changed:
            self._ending = True
            for entry in self._active:
                entry.stop(now)
            self._changed.notify_all()

    def suspend(self, seconds: float | None = None) -> bool:
        """End at once, like a kill, but in order: rounds stay open, and agents wait for the next process.

        Return whether all was over within so many seconds, by default as many as it takes; if not, the server is at
        work of its own, and the process may be ended all the same: nothing that was accepted is lost.
        """
        with self._changed:
            self._ending = self._suspended = True
            for entry in self._active:
                entry.suspend()
            self._changed.notify_all()
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

    @property
    def _queued(self) -> list[Entry]:
        """The runs whose turn has not come."""
        return [each for each in self.entries if not each.listed.over and each not in self._active and not each.played]

    @property
    def _waiting(self) -> list[Entry]:
        """Those of them that no operator holds."""
        return [each for each in self._queued if each.startable]

    def _serve(self) -> None:
        try:
            # Here for all of them: one that ends must not give its threads to the others.
            with self._open, reference_plan():
                self._run_all()
                if self._error is not None and not isinstance(self._error, DiastoleError):
                    raise self._error
                unfinished = self._suspended and (self._queued or any(entry.goes_on for entry in self.entries))
                self._hub.close("" if unfinished else OVER)
        except BaseException as error:  # noqa: BLE001 (raised by `wait`, in the caller's thread)
            self._error = error

    def _run_all(self) -> None:
        """Give each run its turn, until all are over."""
        with self._changed:
            while True:
                free = self._most - sum(thread is not None for thread in self._active.values())
                begun = [entry for entry, thread in self._active.items() if thread is None]
                for entry in [*begun, *([] if self._ending else self._waiting)][:free]:
                    if entry not in self._active:
                        self._begin(entry)
                    name = f"diastole-run-{entry.berth.run_id}"
                    thread = self._active[entry] = threading.Thread(target=self._play, args=(entry,), name=name)
                    thread.daemon = True
                    thread.start()
                if not self._active and (self._ending or not (self._queued or self._keep)):
                    return
                self._changed.wait()

    def _wake(self) -> None:
        """Look at the queue again."""
        with self._changed:
            self._changed.notify_all()

    def _drop(self, entry: Entry) -> None:
        """Take a run out of the queue before its turn."""
        with self._changed:
            if not entry.listed.over:
                entry.listed.over = True
                self._home.leave(entry.berth)
                self._hub.end(entry.berth.run_id)
                self._changed.notify_all()

    def _begin(self, entry: Entry) -> None:
        self._active[entry] = None
        observers = (*self._observing.of(entry.berth.run_id), *self._observers, *self._watch(entry))
        if self.web is not None:
            observers = (*observers, self.web.watch(entry))
        entry.begin(self._hub, self._decisions, observers, self._track)

    def _play(self, entry: Entry) -> None:
        """Play a run in its own thread, and note that its turn is over unless it goes on later."""
        with about(entry.berth.run_id):
            entry.play(self._figures)
        try:
            with self._changed:
                if not self._ending or entry.ended:
                    self._home.leave(entry.berth)
            self._decisions.end(entry.berth.run_id)
            with self._telling:
                self._ended(entry)
        except BaseException as error:  # noqa: BLE001 (raised by `wait`, in the caller's thread)
            entry.error = entry.error or error
        with self._changed:
            self._error = self._error or entry.error
            entry.listed.retire()
            del self._active[entry]
            self._trim()
            self._changed.notify_all()

    def _trim(self) -> None:
        """Forget the oldest of the runs that are over, so that a coordinator which keeps on does not grow."""
        over = [entry for entry in self.entries if entry.listed.over]
        for entry in over[:-KEPT_OVER] if self._keep else ():
            self.entries.remove(entry)
            self._listed.remove(entry.listed)
