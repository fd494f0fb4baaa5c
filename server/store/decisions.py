"""What the operator decides of devices, so that it outlasts a process."""

from diastole.server.store.store import Store
from diastole.server.suspensions import Suspensions


class Decisions:
    """Suspends and releases devices, in a run and in the database.

    A suspension by hand holds for every run of the state folder, until the device is released. A release also ends what
    the run itself has decided up to then; the database keeps behind how many rounds that was.
    """

    def __init__(self, store: Store, place: str, run_id: str, suspensions: Suspensions) -> None:
        """Apply what was decided before to a run of the state folder `place`, which has been resumed."""
        self._store, self._place, self._run_id, self._suspensions = store, place, run_id, suspensions
        for device, closed in store.suspended(run_id).items():
            suspensions.release(device, int(closed))
        for device, reason in store.suspended(place).items():
            suspensions.suspend(device, reason)

    def suspend(self, device: str, reason: str) -> None:
        """Keep a device out from the next round on. Raises `StoreError`."""
        self._store.suspend(self._place, device, reason)
        self._suspensions.suspend(device, reason)

    def release(self, device: str, closed: int) -> bool:
        """Let a device back in behind `closed` rounds; return whether it was kept out. Raises `StoreError`."""
        self._store.suspend(self._place, device, "")
        self._store.suspend(self._run_id, device, str(closed))
        return self._suspensions.release(device)
