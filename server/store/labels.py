"""What operators call devices by, beside their names."""

import json
from collections.abc import Mapping, Sequence

from diastole.proto.jsontext import from_json
from diastole.server.store.store import Store

KIND = "labels"


class Labels:
    """The labels of a state folder's devices. Every method raises `StoreError`."""

    def __init__(self, store: Store, place: str) -> None:
        self._store, self._place = store, place

    def all(self) -> dict[str, dict[str, str]]:
        """Return the labels of every device that has any, by its name."""
        return {name: from_json(text) for name, text in self._store.notes(self._place, KIND).items()}

    def change(
        self, device: str, added: Mapping[str, str], removed: Sequence[str] = (), most: int = 32
    ) -> dict[str, str]:
        """Give a device labels, and take others away; return those that it has then.

        If they are more than `most`, nothing is changed.
        """
        before = self.all().get(device, {})
        after = {key: value for key, value in sorted({**before, **added}.items()) if key not in removed}
        if len(after) <= most:
            self._store.note(self._place, KIND, device, json.dumps(after) if after else "")
        return after
