"""Which devices are there, written down so that a new process waits for them."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import TypeAdapter

from diastole.proto.jsontext import from_json
from diastole.proto.profile import Profile
from diastole.server.errors import StoreError
from diastole.server.store.store import Present, Store

_PROFILE = TypeAdapter(Profile)


class Attendance:
    """The devices of a coordinator's state folder, whatever runs they serve. Every method raises `StoreError`."""

    def __init__(self, store: Store, place: str) -> None:
        """Use a database for the state folder that `place` names."""
        self._store, self._place = store, place

    def meet(self, device: str, profile: Profile, key: str) -> None:
        """Write down that a device has joined, and the digest of the key by which it may take its name over."""
        self._store.meet(self._place, device, Present(json.dumps(asdict(profile)), key))

    def part(self, device: str) -> None:
        """Write down that a device is gone."""
        self._store.part(self._place, device)

    def there(self) -> Mapping[str, tuple[Profile, str]]:
        """Return the devices that were there when the last process ended, each with the digest of its key."""
        found = self._store.devices(self._place)
        try:
            read = {name: _PROFILE.validate_python(from_json(each.profile)) for name, each in found.items()}
        except ValueError:
            raise StoreError(f"the database's table of devices has a profile that is none, in {self._place}") from None
        return {name: (profile, found[name].key) for name, profile in read.items()}
