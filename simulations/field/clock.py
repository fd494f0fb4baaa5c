"""The virtual clock: what a federation would have cost in the field, in time, energy and bytes.

`FieldLink` stands between the round loop and an engine. It decides which devices are online, how long each task takes
there and which tasks are lost; the engine trains only those whose update arrives. Nothing ever waits for real.
"""

import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Any

from diastole.experiments.field import FieldCost, Spent
from diastole.models.cost import Cost
from diastole.models.methods.registry import apart
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.ways import cost_by
from diastole.models.work import training_seconds
from diastole.proto.kept import keep
from diastole.proto.payload import Payload, encode
from diastole.proto.profile import Profile
from diastole.server.events import Change
from diastole.server.link import Failure, Link, Traffic
from diastole.simulations.engines.coded import CodedLink
from diastole.simulations.engines.goal import in_parts
from diastole.simulations.field.populations import FieldDevice

STEP_SECONDS = 60.0


class VirtualClock:
    """Seconds since midnight UTC of the first day; they pass only when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time, for whoever takes a clock."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Raises `ValueError` if they are negative."""
        if seconds < 0:
            raise ValueError(f"the clock cannot go back by {-seconds:g} s")
        self.now += seconds


@dataclass(frozen=True, slots=True)
class FieldTask:
    """One task on one device: download, training and upload in seconds, one after the other.

    Attributes:
        task: what is to be done.
        device: who does it.
        download: seconds.
        training: seconds, a straggler's slow-down included.
        upload: seconds.
        bytes_down: of the download.
        bytes_up: of the upload.
        lost: seconds after which the device drops out; None if it does not.

    """

    task: Task
    device: FieldDevice
    download: float
    training: float
    upload: float
    bytes_down: int
    bytes_up: int
    lost: float | None

    @property
    def ends(self) -> float:
        """Seconds until the update arrives or the device drops out."""
        return self.download + self.training + self.upload if self.lost is None else self.lost

    def spent(self, seconds: float) -> Spent:
        """Return the cost of the first `seconds`."""
        download = min(seconds, self.download)
        training = min(max(seconds - self.download, 0.0), self.training)
        upload = min(max(seconds - self.download - self.training, 0.0), self.upload)
        kind = self.device.kind
        return Spent(
            training=training,
            transfer=download + upload,
            joules=kind.watts * training + kind.radio_watts * (download + upload),
            down=round(self.bytes_down * download / self.download),
            up=round(self.bytes_up * upload / self.upload),
        )


def field_task(
    task: Task,
    device: FieldDevice,
    cost: Cost,
    examples: int,
    kept: bool = False,
    moved: tuple[int, int] | None = None,
) -> FieldTask:
    """Return how a task goes on a device.

    Args:
        task: what is to be done.
        device: who does it.
        cost: of the sub-model.
        examples: on the device.
        kept: whether the device has what it does not train from an earlier task.
        moved: bytes of what it trains, down and up, as they are encoded; None if that is exactly.

    """
    seconds = training_seconds(cost, task.training, examples, device.macs_per_second, device.speeds)
    training = seconds * device.slowdown(task.task_id)
    down, up = moved or (cost.moving, cost.up)
    down += 0 if kept else cost.untrained
    download, upload = down / device.down, up / device.up
    share = device.lost_at(task.task_id)
    lost = None if share is None else share * (download + training + upload)
    return FieldTask(task, device, download, training, upload, down, up, lost)


class FieldLink:
    """A link to devices of the field, simulated by another link that trains.

    The round loop's waiting and deadlines are in virtual seconds. A device that is online takes a task and either
    finishes it, drops out, or is still out at the deadline; the server's own work takes no virtual time. Updates
    that come from `inner` before their turn are kept until it is their turn: at worst a whole cohort's.
    """

    def __init__(
        self,
        inner: Link,
        devices: Mapping[str, FieldDevice],
        clock: VirtualClock,
        model: ModelConfig,
        coded: CodedLink | None = None,
        *,
        pause: float = 0.0,
        goal: int | None = None,
    ) -> None:
        """Put `devices`, by the names they have in `inner`, into the field.

        `coded` is `inner` if payloads travel in codecs; `pause` seconds follow every dispatch. `goal` is that of the
        rounds: no more is trained than may be asked for.
        """
        self._inner, self._coded = inner, coded
        self._devices = devices
        self._clock = clock
        self._model = model
        self._pause, self._goal = pause, goal
        self._interrupted = threading.Event()
        self._batteries = {name: (device.battery(), clock.now) for name, device in devices.items()}
        self._spent = dict.fromkeys(devices, Spent())
        self._rounds: dict[int, Spent] = {}
        self._kept: dict[str, dict[str, None]] = {}

    def devices(self) -> Mapping[str, Profile]:
        """Return the devices that are online at the virtual now."""
        return {name: profile for name, profile in self._inner.devices().items() if self.online(name)}

    def seen(self) -> Mapping[str, Profile]:
        """Return every device of the field."""
        return self._inner.seen()

    def observe(self, tell: Callable[[Change], None]) -> None:
        """Tell of nothing: who is online at a virtual moment joins and leaves nothing."""

    def online(self, name: str) -> bool:
        """Return whether a device can take a task now."""
        device, now = self._devices[name], self._clock.now
        return device.online(now, device.charged(*self._batteries[name], now))

    def wait(self, count: int, seconds: float) -> bool:
        """Let virtual time pass until `count` devices are online; False if that took longer than `seconds`."""
        began = self._clock.now
        while sum(map(self.online, self._devices)) < count:
            left = began + seconds - self._clock.now
            if left <= 0 or count > len(self._devices) or self._interrupted.is_set():
                return False
            self._clock.advance(min(STEP_SECONDS, left))
        return True

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Yield updates and drop-outs in the virtual order of their arrival, at the clock's time of arrival.

        Ends `deadline` virtual seconds after the start if somebody is then still out. Only updates that arrive are
        trained. A round without tasks lasts a minute, or nobody new would ever come online.
        """
        began = self._clock.now
        profiles = self._inner.devices()
        digests = {spec: self._digest(spec, state) for spec, state in states.items()}
        planned = [
            self._planned(task, profiles[task.device].examples, digests[task.spec], states[task.spec]) for task in tasks
        ]
        planned.sort(key=lambda item: (item.ends, item.task.device))
        due = [item for item in planned if deadline is None or item.ends <= deadline]
        out = {item.task.device: item for item in planned}
        try:
            arriving = [item.task for item in due if item.lost is None]
            with closing(in_parts(self._inner, arriving, states, self._goal)) as outcomes:
                early: dict[str, Update | Failure] = {}
                for item in due:
                    outcome = self._outcome(item, outcomes, early)
                    if outcome is None:
                        return
                    self._pass(began + item.ends)
                    self._book(out.pop(item.task.device), item.ends)
                    yield outcome
            if not tasks:
                self._clock.advance(STEP_SECONDS)
            elif out and deadline is not None:
                self._pass(began + deadline)
        finally:
            for item in out.values():
                self._book(item, self._clock.now - began)
            self._clock.advance(self._pause)

    def enough(self) -> bool:
        """Leave it to the caller to close the dispatch; those that are out have spent what they have by then."""
        return False

    def interrupt(self) -> None:
        """End the dispatch that is going on."""
        self._interrupted.set()
        self._inner.interrupt()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes of every device so far, those of lost tasks included."""
        return {name: Traffic(spent.down, spent.up) for name, spent in self._spent.items()}

    def cost(self) -> FieldCost:
        """Return what the run has cost so far."""
        return FieldCost(self._clock.now, dict(self._spent), dict(self._rounds))

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what the field and its clock have come to: the time, the batteries and what was spent.

        As JSON, and the tensors of what is encoded.
        """
        more, tensors = self._coded.memory() if self._coded else ({}, {})
        mine = {
            "now": self._clock.now,
            # A device on mains power has no level to remember.
            "batteries": {name: battery for name, battery in self._batteries.items() if battery[0] < math.inf},
            "spent": {name: astuple(spent) for name, spent in self._spent.items()},
            "rounds": [(number, astuple(spent)) for number, spent in self._rounds.items()],
            "kept": {name: list(digests) for name, digests in self._kept.items()},
        }
        return more | mine, tensors

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another link's `memory()`, and set the clock; the devices must be the same."""
        if self._coded is not None:
            self._coded.resume(memory, tensors)
        self._clock.now = memory["now"]
        self._batteries |= {name: (level, since) for name, (level, since) in memory["batteries"].items()}
        self._spent |= {name: Spent(*spent) for name, spent in memory["spent"].items()}
        self._rounds = {number: Spent(*spent) for number, spent in memory["rounds"]}
        self._kept = {name: dict.fromkeys(digests) for name, digests in memory.get("kept", {}).items()}

    def _digest(self, spec: SubModelSpec, state: State) -> str:
        """Return the digest of what a device does not train of a sub-model, empty if it trains all of it."""
        _, still = apart(self._model, spec, state)
        return Payload.of(encode(still)).sha256 if still else ""

    def _planned(self, task: Task, examples: int, digest: str, state: State) -> FieldTask:
        cost, mine = cost_by(self._model, task.spec, task.training, task.levers), self._kept.get(task.device, {})
        moved = self._coded.moved(task, state, cost) if self._coded else None
        found = field_task(task, self._devices[task.device], cost, examples, digest in mine, moved)
        if digest and (found.lost is None or found.lost >= found.download):
            keep(self._kept.setdefault(task.device, {}), digest, None)
        return found

    def _outcome(
        self, item: FieldTask, outcomes: Iterator[Update | Failure], early: dict[str, Update | Failure]
    ) -> Update | Failure | None:
        """Return what comes of a task, or None if the engine ended before it was trained."""
        name = item.task.device
        if item.lost is not None:
            return None if self._interrupted.is_set() else Failure(name, f"dropped out after {item.lost:.3g} s", False)
        while name not in early:
            outcome = next(outcomes, None)
            if outcome is None:
                return None
            early[outcome.device] = outcome
        outcome = early.pop(name)
        if isinstance(outcome, Failure):
            return outcome
        return replace(outcome, report=replace(outcome.report, seconds=item.training))

    def _pass(self, moment: float) -> None:
        self._clock.advance(max(moment - self._clock.now, 0.0))

    def _book(self, item: FieldTask, seconds: float) -> None:
        name, spent = item.task.device, item.spent(seconds)
        self._spent[name] += spent
        self._rounds[item.task.round] = self._rounds.get(item.task.round, Spent()) + spent
        level = item.device.charged(*self._batteries[name], self._clock.now)
        self._batteries[name] = (max(level - spent.joules, 0.0), self._clock.now)
