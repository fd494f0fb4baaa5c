"""The runs of one coordinator, as the services know them, and whose turn it is on each device."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from diastole.proto.coding import PLAIN, Coding
from diastole.proto.payload import Payload
from diastole.server.events import Change, DeviceJoined, DeviceLeft, DevicesMoved, Move, Stage
from diastole.server.link import Failure
from diastole.server.tiers import Tiers
from diastole.server.wire.exchange import Answer, Exchange, OwedTask
from diastole.server.wire.sessions import Session

MOST_OVER = 1000
"""Runs that are remembered once they are over, so that an update which comes late is no fault of its device."""


@dataclass(frozen=True, slots=True)
class RunOffer:
    """A run as devices are told of it.

    Attributes:
        run_id: its name.
        model_json: the global model.
        schema: hash of its tensors' names, shapes and dtypes.
        tiers: which tier a device belongs to; None takes every device at its word.
        coding: how payloads are encoded, for devices that know how.
        metric: what the run is judged by first; devices may score themselves by it.

    """

    run_id: str
    model_json: str
    schema: str
    tiers: Tiers | None = None
    coding: Coding = PLAIN
    metric: str = ""


@dataclass(slots=True)
class LiveRun:
    """A run that is under way.

    Attributes:
        offer: what devices are told of it.
        exchange: tasks owed, objects and uploads.
        fail: told of whatever went wrong with a task.
        tell: told of every device of the run that joins or leaves, and how far each is.
        deadline: of the open round, a time of the event loop; None without one.
        served: tasks that devices were given.
        given: those of the open round, by name.
        moves: how far devices have come with them, of which nobody has been told.

    """

    offer: RunOffer
    exchange: Exchange
    fail: Callable[[Failure], None]
    tell: Callable[[Change], None]
    deadline: float | None = None
    served: int = 0
    given: set[str] = field(default_factory=set)
    moves: list[Move] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """Its name."""
        return self.offer.run_id

    def move(self, device: str, stage: Stage, number: int) -> None:
        """Note how far a device is with its task of a round, if that is still open."""
        if number == self.exchange.round:
            self.moves.append(Move(device, stage, time.time()))

    def tell_moves(self) -> None:
        """Tell what was noted."""
        if self.moves:
            self.tell(DevicesMoved(self.exchange.round, tuple(self.moves)))
            self.moves.clear()

    def joined(self, session: Session) -> None:
        """Tell of a device that has joined."""
        profile = session.serves.get(self.run_id, session.profile)
        lacks = ", ".join(sorted(self.offer.coding.needs.difference(profile.codecs, PLAIN.needs)))
        self.tell(DeviceJoined(session.name, profile.tier, profile.examples, lacks))


class Board:
    """Every run that is under way or waits for its turn, in the order in which they were asked for.

    A device has one task at a time. Of several runs that have one for it, the one that was served least goes first. To
    be used on the event loop alone, but for `given`.
    """

    def __init__(self, note: Callable[[str], None], *, keeps: bool = False, over: Iterable[str] = ()) -> None:
        """Begin without a run.

        Args:
            note: is told of each device that joins or goes.
            keeps: whether more runs may come once all are over.
            over: runs of earlier processes.

        """
        self._note, self.keeps = note, keeps
        self.offers: dict[str, RunOffer] = {}
        self.failures: dict[str, str] = {}
        self._live: dict[str, LiveRun] = {}
        self._over: OrderedDict[str, Exchange | None] = OrderedDict.fromkeys(over)
        self._turns: dict[str, tuple[LiveRun, str]] = {}

    def offer(self, offer: RunOffer) -> None:
        """Let devices know of a run."""
        self.offers[offer.run_id] = offer

    def begin(self, run: LiveRun) -> None:
        """Let a run have tasks."""
        run.served = min((each.served for each in self._live.values()), default=0)
        self.offers.setdefault(run.run_id, run.offer)
        self._live[run.run_id] = run

    def end(self, run_id: str, failure: str = "") -> None:
        """Take a run down; what comes late for it is still answered. `failure` says why it came to nothing.

        Only the first word on a run counts.
        """
        if run_id not in self.offers:
            return
        self.offers.pop(run_id, None)
        run = self._live.pop(run_id, None)
        self._over[run_id] = run.exchange if run else None
        while len(self._over) > MOST_OVER:
            self._over.popitem(last=False)
        if failure:
            self.failures[run_id] = failure

    @property
    def live(self) -> Iterable[LiveRun]:
        """The runs that are under way."""
        return self._live.values()

    @property
    def coming(self) -> bool:
        """Whether a round is about to be opened that devices may have had tasks of."""
        return any(run.exchange.coming for run in self.live)

    def of(self, session: Session) -> Iterator[LiveRun]:
        """Yield the runs under way that a device serves."""
        return (run for run in self.live if run.run_id in session.serves)

    def over_for(self, session: Session) -> bool:
        """Return whether no run is left that a device could serve, and none will come."""
        return not self.keeps and self.offers.keys().isdisjoint(session.serves)

    def owner(self, task_id: str) -> LiveRun | None:
        """Return the run under way that a task belongs to; for what belongs to none the first one. None without any."""
        mine = (run for run in self.live if task_id.startswith((f"{run.run_id}-r", f"{run.run_id}.")))
        return next(mine, next(iter(self.live), None))

    def late(self, task_id: str, device: str) -> Answer | None:
        """Return how an update for a run that is over is answered; None if it is for no such run."""
        # Behind a point comes how often the run was rolled back.
        run_id = task_id.rpartition(f"-{device}")[0].rpartition("-r")[0].partition(".")[0]
        if run_id not in self._over:
            return None
        exchange = self._over[run_id]
        found = exchange.status(device, task_id, "")[1] if exchange else None
        return found if found is Answer.ACCEPTED else Answer.NOT_NEEDED

    def find(self, device: str, sha256: str) -> tuple[LiveRun, Payload] | None:
        """Return an object that a task of an open round gave to a device, with the run of that task."""
        found = ((run, run.exchange.find(device, sha256)) for run in self.live)
        return next(((run, payload) for run, payload in found if payload is not None), None)

    def current(self, device: str) -> tuple[LiveRun, OwedTask] | None:
        """Return the task that a device is at, or the next one for it; None if nothing is owed."""
        run, task_id = self._turns.get(device, (None, ""))
        order = run and next((each for each in run.exchange.owed(device) if each.task.task_id == task_id), None)
        return (run, order) if run and order else self.next(device)

    def next(self, device: str) -> tuple[LiveRun, OwedTask] | None:
        """Return the next task for a device, which is then at it; None if it is at one, or if there is none."""
        run, task_id = self._turns.get(device, (None, ""))
        if run and any(each.task.task_id == task_id for each in run.exchange.owed(device)):
            return None
        waiting = [(each, owed) for each in self.live if (owed := each.exchange.owed(device))]
        if not waiting:
            self._turns.pop(device, None)
            return None
        run, (order, *_) = min(waiting, key=lambda item: item[0].served)
        self._turns[device] = run, order.task.task_id
        run.served += 1
        run.given.add(order.task.task_id)
        run.move(device, "given", order.task.round)
        return run, order

    def join(self, session: Session) -> None:
        """Tell of a device that has joined."""
        self._note(session.name)
        for run in self.of(session):
            run.joined(session)

    def leave(self, session: Session, reason: str) -> None:
        """Give up what a device owes that is gone, and tell of it."""
        for run in self.live:
            run.exchange.give_up(session.name, reason)
        for run in self.of(session):
            run.tell(DeviceLeft(session.name, Failure(session.name, reason, faulty=False).reason))
        self._turns.pop(session.name, None)
        self._note(session.name)
