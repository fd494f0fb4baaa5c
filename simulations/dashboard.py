"""The dashboard of runs on this machine: the page of a coordinator, by the same events."""

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from diastole.proto.address import Address
from diastole.server.coordinator import Coordinator
from diastole.server.errors import AddressError
from diastole.server.events import Event, Observer, RoundClosed, RunFinished, RunStarted
from diastole.server.progress import Moving
from diastole.server.web.family import Family, family_of
from diastole.server.web.libraries import check_libraries
from diastole.server.web.rights import Rights
from diastole.server.web.source import Seen, ShownRun, Stored, VerbError
from diastole.server.web.watching import Watching
from diastole.simulations.compared import Standing
from diastole.simulations.devices import Federation

if TYPE_CHECKING:
    from diastole.server.web.server import WebServer

ANYWHERE = Address("127.0.0.1", 0)
USUAL = Address("127.0.0.1", 7780)


@dataclass(slots=True)
class Watched:
    """A run that is watched; its coordinator once it has begun, if it is in this process."""

    run_id: str
    title: str
    method: str
    rounds: int
    state: str = "queued"
    federation: Federation | None = None
    coordinator: Coordinator | None = None
    family: Family | None = None


class Simulated:
    """Implements `Source` for runs on this machine."""

    def __init__(self) -> None:
        self.watched: dict[str, Watched] = {}
        self._lock = threading.Lock()

    def runs(self) -> Sequence[ShownRun]:
        """Return the runs in their order."""
        runs = list(self.watched.values())
        return [ShownRun(run.run_id, run.title, run.method, run.state, run.rounds) for run in runs]

    def moving(self, run_id: str) -> Mapping[str, Moving]:
        """Return nothing: nothing is transferred."""
        return {}

    def seen(self, run_id: str, names: Sequence[str]) -> Mapping[str, Seen]:
        """Return what the simulated devices say of themselves, and what they have moved."""
        run = self.watched.get(run_id)
        if run is None or run.federation is None:
            return {}
        devices, ledger, found = run.federation.devices, run.coordinator.ledger if run.coordinator else {}, {}
        for name in (name for name in names if name in devices):
            profile, account = devices[name].profile, ledger.get(name)
            moved = (account.bytes_down, account.bytes_up) if account else (0, 0)
            found[name] = Seen(None, profile.macs_per_second, profile.memory, profile.down, profile.up, moved)
        return found

    def family(self, run_id: str) -> Family | None:
        """Return the global network and what each sub-model holds of it."""
        with self._lock:
            run = self.watched.get(run_id)
            if run is not None and run.family is None and run.coordinator is not None:
                coordinator = run.coordinator
                run.family = family_of(coordinator.settings.model, coordinator.method.whole, coordinator.sizes)
            return run.family if run else None

    def stored(self) -> Stored | None:
        """Return nothing: what is kept belongs to the command, not to a coordinator."""
        return None

    def do(self, run_id: str, verb: str) -> None:
        """Refuse: who runs a command stops it. Raises `VerbError`."""
        raise VerbError(f"run {run_id}: Ctrl-C where the command was given ends it; {verb} is not possible here")


class LocalDashboard:
    """Serves the page while it is open; use as a context manager around the runs.

    Attributes:
        url: of the page, with a token that logs in; empty before it is open.

    """

    def __init__(self, address: Address | None = None) -> None:
        """Serve at a loopback address; by default at `USUAL`, or another port if that is taken.

        Raises `AddressError` for an address that other machines can reach, or without the libraries of the dashboard.
        """
        check_libraries()
        if address is not None and not address.loopback:
            raise AddressError(f"web {address} would show these runs to other machines; a loopback address is accepted")
        self.url, self._address = "", address
        self._source = Simulated()
        self._watching = Watching(self._source)
        self._server: WebServer | None = None
        self._told: dict[str, Observer] = {}
        self._last: dict[str, int] = {}

    def __enter__(self) -> Self:
        from diastole.server.web.app import App
        from diastole.server.web.server import WebServer, listener

        try:
            found = listener(self._address or USUAL)
        except AddressError:
            if self._address is not None:
                raise
            found = listener(ANYWHERE)
        token, port = secrets.token_urlsafe(24), found.getsockname()[1]
        self._server = WebServer(found, App(self._watching, Rights(token), port=port))
        # Behind the "#", so that it is sent nowhere, and the page alone reads it.
        self.url = f"http://{(self._address or USUAL).at(port)}/#token={token}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()

    def expect(self, run_id: str, title: str, method: str, rounds: int) -> None:
        """List a run whose turn has not come."""
        self._source.watched.setdefault(run_id, Watched(run_id, title, method, rounds))

    def watch(self, run_id: str, federation: Federation) -> Observer:
        """Return an observer of a run in this process, over simulated devices."""
        experiment = federation.simulation
        self.expect(run_id, experiment.name, experiment.method, experiment.rounds.count)
        run = self._source.watched[run_id]
        run.federation = federation
        tiers = {name: profile.tier for name, profile in federation.profiles.items()}
        examples = {name: profile.examples for name, profile in federation.profiles.items()}
        return self._observer(run, tiers, examples)

    def begun(self, run_id: str, coordinator: Coordinator) -> None:
        """Note the coordinator of a run that is watched."""
        run = self._source.watched[run_id]
        run.coordinator = coordinator
        self._watching.recall(run_id, coordinator.closed)

    def tell(self, standing: Standing) -> None:
        """Show how a run of a comparison stands that is in another process, or of an earlier call."""
        name, metric = standing.run.name, standing.metric
        rounds = standing.run.home.rounds.count
        self.expect(name, name, standing.run.method, rounds)
        run = self._source.watched[name]
        if run.federation is None:
            if name not in self._told:
                self._told[name] = tell = self._observer(run, {}, {})
                tell(RunStarted(standing.run.method, rounds, (), standing.round, metric))
            scores = {} if standing.score is None else {metric: standing.score}
            if scores and self._last.get(name) != standing.round:
                self._last[name] = standing.round
                self._told[name](RoundClosed(standing.round, 0, "", scores, {}, 0, 0, 0.0))
            if standing.done:
                self._told[name](RunFinished(standing.round, stopped=False))
        if standing.done:
            run.state = "finished"

    def _observer(self, run: Watched, tiers: Mapping[str, str], examples: Mapping[str, int]) -> Observer:
        feed = self._watching.feed(run.run_id, tiers=tiers, examples=examples, staged=False)

        def observe(event: Event) -> None:
            if isinstance(event, RunStarted):
                run.state = "running"
            elif isinstance(event, RunFinished):
                run.state = "failed" if event.failed else "stopped" if event.stopped else "finished"
            feed(event)

        return observe
