"""One run in a coordinator's queue, from its turn to its result."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from diastole.experiments.errors import ExperimentError, NothingLearnedError
from diastole.experiments.experiment import Experiment
from diastole.experiments.home import Berth, Home
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
from diastole.server.events import Observer, RoundClosed
from diastole.server.overrides import Overrides
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

    def __init__(self, berth: Berth, home: Home, drop: Callable[["Entry"], None]) -> None:
        """Wait for a turn; `drop` is told if there is not to be one."""
        run, experiment = berth.run, berth.run.experiment
        self.run, self.berth, self._home, self._drop = run, berth, home, drop
        self.listed = ListedRun(
            berth.run_id,
            experiment.method,
            experiment.rounds.count,
            berth.path,
            self.stop,
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

    def begin(self, hub: Hub, decisions: Decisions, observers: Sequence[Observer], track: Sequence[str]) -> None:
        """Let devices have tasks of the run, once it is played."""
        run, berth, snapshot = self.run, self.berth, self.berth.snapshot
        with ExitStack() as stack:
            objects = self._home.folder.objects / berth.run_id
            journal = Journal(self._home.store, berth.run_id, objects, self.closed)
            link = RunLink(hub, self.offer, run.model, seed=run.experiment.seed, journal=journal, longest=LONGEST_ROUND)
            # Whoever has closed it before has told the devices something better.
            stack.callback(self._close, "the coordinator failed")
            berth.checkpoint.extra = link.outgoing.memory
            coordinator = run.coordinator(
                link, (self.listed.log, *observers), run_id=berth.run_id, keep=berth.checkpoint.keep, journal=journal
            )
            specs = [size.spec for size in coordinator.sizes]
            coordinator.observe(Vectors(run.model, specs, link.devices))
            if snapshot is not None:
                coordinator.resume(snapshot)
                link.outgoing.resume(snapshot.extra, snapshot.tensors)
            decisions.begin(berth.run_id, coordinator.suspensions, lambda: len(coordinator.closed))
            closed = snapshot.closed if snapshot else ()
            for tracker in stack.enter_context(tracking(list(track), run.experiment, berth.path, closed)):
                coordinator.observe(tracker)
            self.listed.link, self.listed.coordinator = link, coordinator
            self._open = stack.pop_all()

    def play(self, figures: Sequence[str]) -> None:
        """Run the rounds, tell the devices, and write the result; `error` has what goes wrong."""
        self.played = True
        coordinator, link = self.listed.coordinator, self.listed.link
        if coordinator is None or link is None:
            raise RuntimeError("a run is played before it has begun")
        try:
            with self._open:
                try:
                    coordinator.run()
                except RoundError as error:
                    # Devices that went away must not take with them what was learned before.
                    self.error = error
                coordinator.ledger.meet(link.seen())
                if self.error is None and not coordinator.learned:
                    self.error = NothingLearnedError(_nothing(coordinator.closed))
                elif self.error is None and coordinator.failed:
                    self.error = RoundError(coordinator.failed)
                self.goes_on = self._suspended and not self.ended
                # The devices are told before anybody is told the result.
                self._close(str(self.error or ""))
                self._finish(coordinator, figures)
        except BaseException as error:  # noqa: BLE001 (raised by whoever waits for the run)
            self.error = error

    def suspend(self) -> None:
        """End at once and leave the round open, for the next process."""
        self._suspended = True
        if self.listed.link is not None and self.listed.coordinator is not None:
            self.listed.link.suspend()
            self.listed.coordinator.suspend()

    def stop(self, now: bool) -> None:
        """End it after the open round, or now; before its turn it has none."""
        if self.listed.coordinator is not None:
            self.listed.coordinator.stop(now=now)
        else:
            self._drop(self)

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
