"""Simulated devices whose payloads travel in codecs: what an engine trains has lost what it would lose on the wire."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from diastole.models.cost import Cost
from diastole.models.crossing import CPU, device_of, send_all
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.proto.coding import Coding
from diastole.proto.payload import PayloadError
from diastole.proto.residuals import Residuals
from diastole.server.link import Failure, Link
from diastole.server.outgoing import Outgoing, Sent
from diastole.simulations.engines.base import SimulatedLink


class CodedLink(SimulatedLink):
    """A link in front of another one, whose engine trains: it encodes and decodes what goes down and what comes up.

    Every device is taken to know the run's codecs. The bits are those of the gRPC link, and so are the bytes.
    """

    def __init__(self, inner: Link, model: ModelConfig, coding: Coding, seed: int) -> None:
        """Encode for the devices of `inner`; `seed` is the run's."""
        super().__init__(inner.devices(), model)
        self._inner, self._outgoing = inner, Outgoing(model, coding, seed)
        self._residuals: dict[str, Residuals] = {}
        self._versions: dict[str, str] = {}

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks on what devices receive, and yield what the coordinator makes of what they send."""
        sent = {task.spec: self._outgoing.send(task.spec, states[task.spec], task.round) for task in tasks}
        received = {spec: send_all(each.received, device_of(states[spec])) for spec, each in sent.items()}
        with closing(self._inner.dispatch(tasks, received, deadline)) as outcomes:
            for outcome in outcomes:
                if not isinstance(outcome, Update):
                    yield outcome
                    continue
                home = device_of(outcome.state)
                arrived = self._arrive(replace(outcome, state=send_all(outcome.state, CPU)), sent[outcome.spec])
                yield replace(arrived, state=send_all(arrived.state, home)) if isinstance(arrived, Update) else arrived

    def interrupt(self) -> None:
        """End the dispatch that is going on."""
        super().interrupt()
        self._inner.interrupt()

    def moved(self, task: Task, state: State, cost: Cost) -> tuple[int, int]:
        """Return the bytes that a task's device downloads of what it trains, and those that it uploads."""
        offer = self._outgoing.send(task.spec, state, task.round).offer
        up = self._outgoing.coding.bytes_up(cost.shapes, cost.up)
        return offer.bytes_down(self._versions.get(task.device, "")), up

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what devices keep and what the coordinator has sent, as JSON and tensors."""
        memory, tensors = super().memory()
        more, versions = self._outgoing.memory()
        listed = {}
        for device, residuals in self._residuals.items():
            listed[device], mine = residuals.memory(f"residual {device} ")
            tensors |= mine
        return memory | more | {"residuals": listed, "held": dict(self._versions)}, tensors | versions

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another link's `memory()`."""
        super().resume(memory, tensors)
        self._outgoing.resume(memory, tensors)
        self._versions = dict(memory.get("held", {}))
        for device, listed in memory.get("residuals", {}).items():
            self._residuals[device] = Residuals.of(listed, tensors, f"residual {device} ")

    def _arrive(self, update: Update, sent: Sent) -> Update | Failure:
        """Return an update as it arrives at the coordinator."""
        device, task, offer = update.device, update.task, sent.offer
        residuals = self._residuals.setdefault(device, Residuals())
        codec = self._outgoing.coding.up
        data = residuals.encode(codec, task.key, update.state, offer.received, task.codec_seed)
        residuals.taken()
        fixed = sent.fixed
        down = offer.bytes_down(self._versions.get(device, ""))
        self.move(device, down, len(data), len(fixed.data) if fixed else 0, fixed.sha256 if fixed else "")
        if offer.version:
            self._versions[device] = offer.version
        try:
            return replace(update, state=self._outgoing.read(sent, data, task))
        except PayloadError as error:
            return Failure(device, str(error), faulty=True)
