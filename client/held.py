"""Objects that a device has downloaded: what has not changed is not downloaded again."""

from collections.abc import Callable

from diastole.proto.kept import keep
from diastole.v1 import common_pb2

Fetch = Callable[[common_pb2.ObjectRef, Callable[[], bool]], bytes | None]


class Held:
    """The latest model, and the latest few objects of tensors that are not trained."""

    def __init__(self, fetch: Fetch) -> None:
        """Hold nothing yet; `fetch` downloads an object, and gives None if nobody needs it any more."""
        self._fetch = fetch
        self._model: dict[str, bytes] = {}
        self._untrained: dict[str, bytes] = {}

    def model(self, ref: common_pb2.ObjectRef, stopped: Callable[[], bool]) -> bytes | None:
        """Return a task's model; None if its round is over."""
        data = self._model.get(ref.sha256)
        if data is None:
            # The last one makes room.
            self._model = {}
            data = self._fetch(ref, stopped)
            if data is not None:
                self._model = {ref.sha256: data}
        return data

    def untrained(self, ref: common_pb2.ObjectRef, stopped: Callable[[], bool]) -> bytes | None:
        """Return the tensors of a task that are not trained; None if its round is over."""
        data = self._untrained.get(ref.sha256) or self._fetch(ref, stopped)
        if data is not None:
            keep(self._untrained, ref.sha256, data)
        return data
