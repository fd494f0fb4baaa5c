"""One run in a coordinator's queue, from its turn to its result."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from diastole.experiments.errors import ExperimentError, NothingLearnedError
from diastole.experiments.experiment import Experiment
from diastole.experiments.home import HELD, PAUSED, Berth, Home
from diastole.experiments.kept import model_file
from diastole.experiments.report.trackers import track as tracking
from diastole.experiments.result import Result, result_of
from diastole.experiments.run import Run, make_run
from diastole.experiments.vectors import Vectors
from diastole.models.allowed import is_allowed
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.proto.jsontext import from_json
from diastole.server.coordinator import Coordinator
from diastole.server.errors import RoundError
from diastole.server.events import Observer, RoundClosed, RunRolledBack
from diastole.server.overrides import Overrides
from diastole.server.snapshot import Rollback, Snapshot
from diastole.server.store.decisions import Decisions
from diastole.server.store.journal import Journal
from diastole.server.tiers import Tiers
from diastole.server.wire.board import RunOffer
from diastole.server.wire.hub import Hub
from diastole.server.wire.link import RunLink
from diastole.server.wire.listed import ListedRun

LONGEST_ROUND = 3600.0
"""Seconds after which a round without `rounds.deadline` ends."""


class Entry:
    """A run in a queue.

    Attributes:
        run: what is run.
        berth: where it is kept.
        listed: what operators see of it.
        offer: what devices are told of it.
        closed: rounds that an earlier process had closed.
        result: what it came to, once it is over and has learned something.
        written: the files of the result.
        played: whether its rounds have been run in this process.
        goes_on: whether another process goes on with it.
        error: why it came to nothing, or broke off; None if it did not.

    """

    def __init__(
        self, berth: Berth, home: Home, drop: Callable[["Entry"], None], started: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for a turn; `drop` is told if there is not to be one, `started` if it was held and may have one."""
        run, experiment = berth.run, berth.run.experiment
        self.run, self.berth, self._home, self._drop, self._started = run, berth, home, drop, started
        self._how = home.held(berth.run_id)
        self.listed = ListedRun(
            berth.run_id,
            experiment.method,
            experiment.rounds.count,
            berth.path,
            self,
            over=berth.over,
            name=experiment.name,
        )
        self.offer = RunOffer(
            berth.run_id,
            run.model.to_json(),
            schema_hash(initial_state(run.model, 0)),
            tiers_of(run),
            experiment.coding,
            run.metrics[0] if run.metrics else "",
        )
        self.closed = len(berth.snapshot.closed) if berth.snapshot else 0
        self.result: Result | None = None
        self.written = list[Path]()
        self.error: BaseException | None = None
        self.played = self.goes_on = self._suspended = False
        self._open = ExitStack()
        self._back: Snapshot | None = None
        self._turned, self._refused = threading.Event(), ""
        # What operators ask for is done one after another; the other lock is never held for long.
        self._steering, self._holding = threading.Lock(), threading.Lock()

    def begin(self, hub: Hub, decisions: Decisions, observers: Sequence[Observer], track: Sequence[str]) -> None:
        """Let devices have tasks of the run, once it is played."""
        run, berth, snapshot = self.run, self.berth, self.berth.snapshot
        self._again = partial(self.begin, hub, decisions, observers, track)
        closed = snapshot.closed if snapshot else ()
        with ExitStack() as stack:
            objects, rollbacks = self._home.folder.objects / berth.run_id, snapshot.rollbacks if snapshot else ()
            journal = Journal(self._home.store, berth.run_id, objects, len(closed), len(rollbacks))
            if closed:
                journal.recall(closed[-1])
            link = RunLink(hub, self.offer, run.model, seed=run.experiment.seed, journal=journal, longest=LONGEST_ROUND)
            # Whoever has closed it before has told the devices something better.
            stack.callback(self._close, "the coordinator failed")
            berth.checkpoint.extra = link.outgoing.memory
            coordinator = run.coordinator(
                link,
                (self.listed.log, *observers),
                run_id=journal.names[0],
                keep=berth.checkpoint.keep,
                journal=journal,
                labels=self._home.labels.of,
            )
            specs = [size.spec for size in coordinator.sizes]
            coordinator.observe(Vectors(run.model, specs, link.devices))
            if snapshot is not None:
                coordinator.resume(snapshot)
                link.outgoing.resume(snapshot.extra, snapshot.tensors)
            decisions.begin(berth.run_id, coordinator.suspensions, lambda: len(coordinator.closed))
            for tracker in stack.enter_context(tracking(list(track), run.experiment, berth.path, closed)):
                coordinator.observe(tracker)
            with self._holding:
                self.listed.link, self.listed.coordinator = link, coordinator
                if self.held:
                    coordinator.rest.pause()
            self._open = stack.pop_all()

    def play(self, figures: Sequence[str]) -> None:
        """Run the rounds, tell the devices, and write the result; `error` has what goes wrong."""
        self.played = True
        try:
            while not self._play(figures):
                self._turn()
        except BaseException as error:  # noqa: BLE001 (raised by whoever waits for the run)
            self.error = error
        finally:
            self._turned.set()

    def _play(self, figures: Sequence[str]) -> bool:
        """Run the rounds; return whether that is all, and the run is not to go on behind an earlier one."""
        coordinator, link = self.listed.coordinator, self.listed.link
        if coordinator is None or link is None:
            raise RuntimeError("a run is played before it has begun")
        with self._open:
            try:
                coordinator.run()
            except RoundError as error:
                # Devices that went away must not take with them what was learned before.
                self.error = error
            if self._back is not None and not self._suspended:
                self.goes_on, self.error = True, None
                return False
            coordinator.ledger.meet(link.seen())
            if self.error is None and not coordinator.learned:
                self.error = NothingLearnedError(_nothing(coordinator.closed))
            elif self.error is None and coordinator.failed:
                self.error = RoundError(coordinator.failed)
            self.goes_on = self._suspended and not self.ended
            # The devices are told before anybody is told the result.
            self._close(str(self.error or ""))
            self._finish(coordinator, figures)
        return True

    def _turn(self) -> None:
        """Go on behind the round that an operator wants to go back to; behind the last one if that cannot be kept."""
        coordinator, back = self.listed.coordinator, self._back
        if coordinator is None or back is None:
            raise RuntimeError("nobody has asked to go back")
        undone = tuple(coordinator.closed[len(back.closed) :])
        rollbacks = (*coordinator.rollbacks, Rollback(len(back.closed), time.time(), undone))
        self.goes_on, wanted = False, replace(back, rollbacks=rollbacks)
        try:
            self.berth.checkpoint.roll_back(wanted)
        except OSError:
            self.berth = replace(self.berth, snapshot=self.berth.checkpoint.check())
            self._refused = "its checkpoint cannot be written"
        else:
            self.berth = replace(self.berth, snapshot=wanted)
            coordinator.say(RunRolledBack(len(back.closed), len(undone)))
        self._back = None
        self._again()
        if self._suspended:
            self.suspend()
        self._turned.set()

    def suspend(self) -> None:
        """End at once and leave the round open, for the next process."""
        self._suspended = True
        if self.listed.link is not None and self.listed.coordinator is not None:
            self.listed.link.suspend()
            self.listed.coordinator.suspend()

    def stop(self, now: bool) -> None:
        """End it after the open round, or now; before its turn it has none."""
        with self._steering:
            if self.listed.coordinator is not None:
                self.listed.coordinator.stop(now=now)
            else:
                self._drop(self)

    @property
    def held(self) -> bool:
        """Whether no round begins, because an operator does not want it."""
        return bool(self._how)

    @property
    def startable(self) -> bool:
        """Whether it may have its turn: a run that was paused in its turn has it all the same."""
        return self._how != HELD

    def pause(self) -> None:
        """Let no round begin before `proceed`, in this process and in later ones. Raises `StoreError`."""
        with self._steering, self._holding:
            how = PAUSED if self.listed.coordinator else HELD
            self._home.hold(self.berth.run_id, how)
            self._how = how
            if self.listed.coordinator:
                self.listed.coordinator.rest.pause()

    def proceed(self) -> None:
        """Let it begin, or go on. Raises `StoreError`."""
        with self._steering, self._holding:
            self._home.hold(self.berth.run_id, "")
            self._how = ""
            if self.listed.coordinator:
                self.listed.coordinator.rest.resume()
        self._started()

    def roll_back(self, number: int) -> None:
        """Go on behind an earlier round. Raises `DiastoleError` if that cannot be."""
        with self._steering:
            coordinator = self.listed.coordinator
            if coordinator is None or not self.listed.under_way or coordinator.stopping:
                raise ExperimentError("the run is not under way")
            if number >= len(coordinator.closed):
                raise ExperimentError(f"{len(coordinator.closed)} rounds are closed; an earlier one is accepted")
            self._turned.clear()
            self._refused = ""
            self._back = self.berth.checkpoint.earlier(number)
            coordinator.leave()
            self._turned.wait()
            if self._refused or self._back is not None:
                raise ExperimentError(f"{self._refused or 'the run has ended'}; it was not rolled back")

    def model(self, number: int) -> bytes:
        """Return the models behind a closed round, as a file. Raises `DiastoleError` if they are not kept."""
        return model_file(self.run, self.berth.checkpoint.earlier(number))

    @property
    def ended(self) -> bool:
        """Whether nothing is left to go on with."""
        coordinator = self.listed.coordinator
        if coordinator is None:
            return self.listed.over
        early = bool(coordinator.early or coordinator.failed)
        return early or len(coordinator.closed) >= self.run.experiment.rounds.count

    def _close(self, failure: str) -> None:
        """Take the run down, and tell the devices, unless they are to wait for the next process."""
        if self.listed.link is not None and self.goes_on:
            self.listed.link.leave()
        elif self.listed.link is not None:
            self.listed.link.close(failure)

    def _finish(self, coordinator: Coordinator, figures: Sequence[str]) -> None:
        """Write what the run came to."""
        if coordinator.learned:
            self.result = result_of(self.run, coordinator, run_id=self.berth.run_id)
            self.written = self.result.save(self.berth.path, figures)
            self._home.folder.point(self.berth.run_id)
        if self.ended:
            self._home.finish(self.berth, learned=coordinator.learned and not coordinator.failed)


def _nothing(closed: Sequence[RoundClosed]) -> str:
    """Say why nothing was learned."""
    if not closed:
        return "the run was stopped before its first round was over; nothing was learned"
    return f"nothing was learned: no round counted of {len(closed)}, the last one because {closed[-1].abandoned}"


def tiers_of(run: Run) -> Tiers:
    """Return the tiers that devices are placed in, from that of the largest devices to that of the smallest."""
    tiers = sorted(run.experiment.tiers.items(), key=lambda item: -item[1].width)
    return Tiers({name: tier.names for name, tier in tiers}, Overrides(run.experiment.overrides))


def made(document: str) -> Run:
    """Return the run of an experiment that an operator has sent. Raises `DiastoleError`."""
    try:
        found = from_json(document)
    except ValueError:
        raise ExperimentError("the experiment is not JSON") from None
    if not isinstance(found, dict):
        raise ExperimentError("the experiment is no table of keys")
    experiment = Experiment.parse(found, "the experiment")
    for name in filter(None, (experiment.model.factory, *experiment.functions)):
        if not is_allowed(name):
            raise ExperimentError(f"{name}: code that the coordinator's own command does not name is not imported")
    return make_run(experiment)
