"""The labels of a state folder's devices, so that they outlast a process."""

import json
import threading
from collections.abc import Mapping, Sequence

from diastole.proto.jsontext import from_json
from diastole.server.labels import MOST_LABELS
from diastole.server.store.store import Store

KIND = "labels"


class Labels:
    """The labels of a state folder's devices; safe to use from several threads."""

    def __init__(self, store: Store, place: str) -> None:
        """Read the labels in the state folder `place`. Raises `StoreError`."""
        self._store, self._place, self._lock = store, place, threading.Lock()
        # Replaced as a whole, so that whoever reads needs no lock.
        self._all: Mapping[str, dict[str, str]] = {
            name: from_json(text) for name, text in store.notes(place, KIND).items()
        }

    def all(self) -> Mapping[str, Mapping[str, str]]:
        """Return the labels of every device that has any, by its name."""
        return self._all

    def of(self, device: str) -> Mapping[str, str]:
        """Return the labels of a device."""
        return self._all.get(device, {})

    def change(self, device: str, added: Mapping[str, str], removed: Sequence[str] = ()) -> Mapping[str, str]:
        """Give a device labels, and take others away; return those that it has then.

        If they are more than `MOST_LABELS`, nothing is changed. Raises `StoreError`.
        """
        with self._lock:
            before = {**self._all.get(device, {}), **added}
            after = {key: value for key, value in sorted(before.items()) if key not in removed}
            if len(after) <= MOST_LABELS:
                self._store.note(self._place, KIND, device, json.dumps(after) if after else "")
                others = {name: labels for name, labels in self._all.items() if name != device}
                self._all = {**others, device: after} if after else others
        return after
