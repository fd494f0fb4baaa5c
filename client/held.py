"""Objects that a device has downloaded: what has not changed is not downloaded again, not even after a new start."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diastole.client.statefolder import PART, StateFolder
from diastole.proto.kept import MOST_KEPT, keep
from diastole.proto.payload import Bytes
from diastole.v1 import common_pb2

Fetch = Callable[[common_pb2.ObjectRef, Callable[[], bool], Path | None], Bytes | None]
"""Downloads an object, going on where a file with its first part ends; None if nobody needs it any more."""

MODEL, STILL = "object-model-", "object-still-"


class Held:
    """The latest model, and the latest few objects of tensors that are not trained; with a folder, there too."""

    def __init__(self, fetch: Fetch, folder: StateFolder | None = None) -> None:
        """Hold nothing yet but what is in the folder."""
        self._fetch, self._folder = fetch, folder
        self._model: dict[str, Bytes] = {}
        self._untrained: dict[str, Bytes] = {}

    def model(self, ref: common_pb2.ObjectRef, stopped: Callable[[], bool]) -> Bytes | None:
        """Return a task's model; None if its round is over. Raises what the download raises."""
        if ref.sha256 not in self._model:
            # The last one makes room.
            self._model = {}
            data = self._get(MODEL, ref, stopped, 1)
            if data is None:
                return None
            self._model = {ref.sha256: data}
        return self._model[ref.sha256]

    def untrained(self, ref: common_pb2.ObjectRef, stopped: Callable[[], bool]) -> Bytes | None:
        """Return the tensors of a task that are not trained; None if its round is over. Raises likewise."""
        data = self._untrained.get(ref.sha256) or self._get(STILL, ref, stopped, MOST_KEPT)
        if data is not None:
            keep(self._untrained, ref.sha256, data)
        return data

    def _get(self, kind: str, ref: common_pb2.ObjectRef, stopped: Callable[[], bool], most: int) -> Bytes | None:
        if self._folder is None:
            return self._fetch(ref, stopped, None)
        name = kind + ref.sha256
        data: Bytes | None = self._folder.read(name)
        if data is not None and hashlib.sha256(data).hexdigest() == ref.sha256:
            return data
        self._trim(kind, name, most)
        there = self._folder.make_room(ref.size, name + PART)
        part = self._folder.path(name + PART) if there else None
        data = self._fetch(ref, stopped, part)
        if data is not None and part is not None:
            with suppress(OSError):
                os.replace(part, self._folder.path(name))
        return data

    def _trim(self, kind: str, name: str, most: int) -> None:
        """Forget the oldest objects of a kind, and parts of others than `name`, so that one more makes `most`."""
        if self._folder is None:
            return
        there = [each for each in self._folder.names(kind) if each not in (name, name + PART)]
        whole = [each for each in there if not each.endswith(PART)]
        old = sorted(whole, key=lambda each: self._age(each))[: max(0, len(whole) - most + 1)]
        for each in (*old, *(each for each in there if each.endswith(PART))):
            self._folder.remove(each)

    def _age(self, name: str) -> float:
        try:
            return self._folder.path(name).stat().st_mtime if self._folder else 0.0
        except OSError:
            return 0.0
