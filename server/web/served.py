"""The runs of a coordinator that serves real devices, as a dashboard asks for them."""

import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from diastole.server.errors import StoreError
from diastole.server.ledger import Account
from diastole.server.link import Traffic
from diastole.server.progress import Moving
from diastole.server.web.family import Family, family_of
from diastole.server.web.source import Seen, ShownRun, Stored, VerbError
from diastole.server.wire.listed import ListedRun
from diastole.server.wire.sessions import Sessions

STORED_SECONDS = 30.0
"""For which a count of the bytes on disk is good."""
MOST_FILES = 100_000


class Served:
    """Implements `Source`."""

    def __init__(self, runs: Sequence[ListedRun], sessions: Sessions, folder: Path) -> None:
        """Show runs, which may change, over the sessions of devices; the state is in `folder`."""
        self._runs, self._sessions, self._folder = runs, sessions, folder
        self._families: dict[str, Family | None] = {}
        self._stored: tuple[float, Stored] | None = None
        self._lock = threading.Lock()

    def runs(self) -> list[ShownRun]:
        """Return the runs in their order."""
        return [self._standing(run) for run in list(self._runs)]

    def moving(self, run_id: str) -> Mapping[str, Moving]:
        """Return the transfers that are under way, by device."""
        run = self._find(run_id)
        link = run.link if run else None
        return link.moving() if link else {}

    def seen(self, run_id: str, names: Sequence[str]) -> Mapping[str, Seen]:
        """Return what is known of some devices now."""
        run = self._find(run_id)
        coordinator = run.coordinator if run else None
        planner, ledger = (coordinator.planner, coordinator.ledger) if coordinator else (None, {})
        found = dict[str, Seen]()
        for name in names:
            session, account = self._sessions.named(name), ledger.get(name, Account())
            if session is None:
                found[name] = Seen(moved=(account.bytes_down, account.bytes_up))
                continue
            profile = session.serves.get(run_id, session.profile)
            moved = session.moved.get(run_id, Traffic(account.bytes_down, account.bytes_up))
            found[name] = Seen(
                self._sessions.idle(session),
                profile.macs_per_second,
                profile.memory,
                profile.down,
                profile.up,
                (moved.bytes_down, moved.bytes_up),
                session.agent_version,
                planner.barred(name) if planner else "",
            )
        return found

    def family(self, run_id: str) -> Family | None:
        """Return the global network and what each sub-model holds of it."""
        with self._lock:
            run = self._find(run_id)
            coordinator = run.coordinator if run else None
            if run_id not in self._families and coordinator is not None:
                whole = coordinator.method.whole
                self._families[run_id] = family_of(coordinator.settings.model, whole, coordinator.sizes)
            return self._families.get(run_id)

    def stored(self) -> Stored:
        """Return what lies on disk, counted at most every `STORED_SECONDS`."""
        with self._lock:
            if self._stored is None or time.monotonic() - self._stored[0] > STORED_SECONDS:
                self._stored = time.monotonic(), stored(self._folder)
            return self._stored[1]

    def do(self, run_id: str, verb: str) -> None:
        """Stop a run, after the open round or now; pause it, or let it go on. Raises `VerbError`."""
        run = self._find(run_id)
        if run is None:
            raise VerbError(f"there is no run {run_id!r}")
        if verb not in self._standing(run).verbs:
            raise VerbError(f"run {run_id}: {verb} is not possible now")
        try:
            if verb in ("pause", "resume"):
                (run.control.pause if verb == "pause" else run.control.proceed)()
            else:
                run.control.stop(verb == "stop-now")
        except StoreError as error:
            raise VerbError(str(error)) from None

    def _find(self, run_id: str) -> ListedRun | None:
        return next((run for run in list(self._runs) if run.run_id == run_id), None)

    def _standing(self, run: ListedRun) -> ShownRun:
        state, coordinator = run.standing, run.coordinator
        going = state not in ("finished", "stopped") and not (coordinator is not None and coordinator.stopping)
        verbs = ("resume" if run.control.held else "pause", "stop", "stop-now") if going else ()
        return ShownRun(run.run_id, run.name, run.method, state, run.rounds, verbs)


def stored(folder: Path) -> Stored:
    """Count the bytes below a folder, for each entry in it."""
    left = [MOST_FILES]
    parts = {entry.name: _bytes(entry, left) for entry in sorted(_entries(folder), key=lambda each: each.name)}
    disk = shutil.disk_usage(folder)
    return Stored(folder.name, parts, disk.free, disk.total)


def _entries(folder: Path | str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return ()


def _bytes(entry: os.DirEntry[str], left: list[int]) -> int:
    """Return the bytes of a file, or of all below a folder, as far as so many files are `left` to be counted."""
    left[0] -= 1
    try:
        if entry.is_dir(follow_symlinks=False):
            return sum(_bytes(each, left) for each in _entries(entry.path) if left[0] > 0)
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
