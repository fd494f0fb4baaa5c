"""A device's end of the codecs: downloads in, updates out, and what it keeps from one task to the next."""

from collections.abc import Callable
from dataclasses import dataclass, field

from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.proto.codec import EXACT, find
from diastole.proto.coding import check_like
from diastole.proto.payload import Payload, PayloadError, encode
from diastole.proto.residuals import Residuals
from diastole.proto.versions import advance, way
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

Fetch = Callable[[common_pb2.ObjectRef], bytes | None]
"""Returns an object's bytes; None if its round is over."""


@dataclass(slots=True)
class Codings:
    """What a device keeps: the version of a sub-model that it received last, and what its updates left out."""

    residuals: Residuals = field(default_factory=Residuals)
    version: str = ""
    _held: State = field(default_factory=dict)

    def receive(self, wanted: pb.TrainTask, fetch: Fetch, like: State) -> State | None:
        """Download what is trained of a sub-model, or what has changed of it; None if the round is over.

        `like` has the names, shapes and types that the tensors must have. Raises `PayloadError`.
        """
        coding = wanted.coding
        if coding.version:
            try:
                found = self._advanced(wanted, fetch, like)
            except PayloadError:
                # Whatever is wrong with the changes, there is the whole.
                found = None
            if found is not None:
                return found
        data = fetch(wanted.model)
        if data is None:
            return None
        codec = find(wanted.codec or EXACT.name)
        state = codec.decode(data, like)
        if not codec.exact or coding.version:
            check_like(state, like)
        if coding.version:
            self._keep(coding.version, state)
        return state

    def send(self, task: Task, wanted: pb.TrainTask, trained: State, received: State) -> Payload:
        """Return an update as it travels. Raises `PayloadError`."""
        codec = find(wanted.coding.update or EXACT.name)
        return Payload.of(self.residuals.encode(codec, task.spec.to_json(), trained, received, task.codec_seed))

    def _advanced(self, wanted: pb.TrainTask, fetch: Fetch, like: State) -> State | None:
        """Return the version that a task names, made of the one that is held; None if that cannot be."""
        coding = wanted.coding
        bases, sizes = [step.base for step in coding.steps], [step.change.size for step in coding.steps]
        first = way(self.version, coding.version, bases, sizes, wanted.model.size)
        if first is None:
            return None
        check_like(self._held, like)
        state, codec = self._held, find(coding.change)
        for step in coding.steps[first:]:
            data = fetch(step.change)
            if data is None:
                return None
            state = advance(codec, data, state)
        self._keep(coding.version, state)
        return state

    def _keep(self, version: str, state: State) -> None:
        if Payload.of(encode(state)).sha256 != version:
            raise PayloadError(f"a download is not version {version[:12]!r}..., which it should be")
        self.version, self._held = version, state


def expected(model: ModelConfig, spec: SubModelSpec) -> State:
    """Return tensors like those that a device trains of a sub-model, without memory. Raises what `build` raises."""
    with hollow():
        return {name: weight for name, weight in build(model, spec).named_parameters() if weight.requires_grad}
