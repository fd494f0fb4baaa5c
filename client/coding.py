"""A device's end of the codecs: downloads in, updates out, and what it keeps from one task to the next."""

import hashlib
import json
from collections.abc import Callable, Collection

import torch

from diastole.client.statefolder import StateFolder
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.proto.codec import EXACT, find
from diastole.proto.coding import check_like, decoded
from diastole.proto.jsontext import from_json
from diastole.proto.payload import Bytes, Payload, PayloadError, decode, encode
from diastole.proto.residuals import Residuals
from diastole.proto.versions import advance, way
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

Fetch = Callable[[common_pb2.ObjectRef], Bytes | None]
"""Returns an object's bytes; None if its round is over."""

VERSION, RESIDUALS, WORDS = "codec-version", "codec-residuals", "words"


def file_names(run_id: str) -> tuple[str, str]:
    """Return the names of the files with what is kept of a run: a version, and residuals."""
    end = f"-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}" if run_id else ""
    return VERSION + end, RESIDUALS + end


class Codings:
    """What a device keeps: the version of a sub-model that it received last, and what its updates left out.

    With a folder, both outlive the process. Without what was lost there, a device downloads a whole sub-model once, and
    its next update makes up for less.
    """

    def __init__(self, folder: StateFolder | None = None, run_id: str = "") -> None:
        """Keep what belongs to a run, in files of its own."""
        self.files = file_names(run_id)
        self._folder, self._held = folder, State()
        self.version, self.residuals = "", Residuals()
        if folder is not None:
            self._resume(folder)

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
        state = decoded(find(wanted.codec or EXACT.name), data, like)
        if coding.version:
            self._keep(coding.version, state)
        return state

    def send(self, task: Task, wanted: pb.TrainTask, trained: State, received: State) -> Payload:
        """Return an update as it travels. Raises `PayloadError`."""
        codec = find(wanted.coding.update or EXACT.name)
        data = self.residuals.encode(codec, task.key, trained, received, task.codec_seed)
        if codec.feedback:
            self._save_residuals()
        return Payload.of(data)

    def taken(self) -> None:
        """Learn that the coordinator has taken the last update."""
        if self.residuals.taken():
            self._save_residuals()

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
        payload = Payload.of(encode(state))
        if payload.sha256 != version:
            raise PayloadError(f"a download is not version {version[:12]!r}..., which it should be")
        self.version, self._held = version, state
        if self._folder is not None:
            self._folder.write(self.files[0], payload.data)

    def _save_residuals(self) -> None:
        if self._folder is not None:
            listed, tensors = self.residuals.memory()
            words = torch.tensor(list(json.dumps(listed).encode()), dtype=torch.uint8)
            self._folder.write(self.files[1], encode(tensors | {WORDS: words}))

    def _resume(self, folder: StateFolder) -> None:
        """Go on with what an earlier process has kept, as far as it can be read."""
        version, residuals = map(folder.read, self.files)
        try:
            if version is not None:
                self.version, self._held = Payload.of(version).sha256, decode(version)
            if residuals is not None:
                tensors = decode(residuals)
                self.residuals = Residuals.of(from_json(bytes(tensors.pop(WORDS).tolist())), tensors)
        except (PayloadError, KeyError, ValueError, TypeError):
            # Damaged, or of another version of the agent.
            for name in self.files:
                folder.remove(name)
            self.version, self._held, self.residuals = "", State(), Residuals()


class CodingsOfRuns:
    """The codings of each run that a device serves; what it kept of others is forgotten."""

    def __init__(self, folder: StateFolder | None) -> None:
        self._folder, self._of = folder, dict[str, Codings]()

    def of(self, run_id: str, served: Collection[str]) -> Codings:
        """Return the codings of a run, one of those that are `served`."""
        if run_id not in self._of:
            self._of = {each: found for each, found in self._of.items() if each in served}
            self._of[run_id] = Codings(self._folder, run_id)
            wanted = {name for each in served for name in file_names(each)}
            if self._folder is not None:
                for name in {*self._folder.names(VERSION, RESIDUALS)} - wanted:
                    self._folder.remove(name)
        return self._of[run_id]


def expected(model: ModelConfig, spec: SubModelSpec) -> State:
    """Return tensors like those that a device trains of a sub-model, without memory. Raises what `build` raises."""
    with hollow():
        return {name: weight for name, weight in build(model, spec).named_parameters() if weight.requires_grad}
