"""What observes every run of a coordinator."""

from collections.abc import Sequence
from pathlib import Path

from diastole.server.events import Observer
from diastole.server.observe.logs import Logged
from diastole.server.observe.metrics import exposition
from diastole.server.observe.recent import Recent
from diastole.server.observe.standing import standing
from diastole.server.observe.tally import Tally
from diastole.server.observe.traces import Traced, provider
from diastole.server.security.security import Security
from diastole.server.wire.hub import Hub
from diastole.server.wire.listed import ListedRun


class Observing:
    """Logs, counts and traces what happens in a coordinator's runs.

    Attributes:
        recent: the latest lines of the log.

    """

    def __init__(self) -> None:
        self._tally = Tally()
        self._provider, self.recent = provider(), Recent()

    def close(self) -> None:
        """Send what is left of traces."""
        self.recent.close()
        if self._provider is not None:
            self._provider.shutdown()

    def of(self, run_id: str) -> tuple[Observer, ...]:
        """Return what observes a run."""
        traced = (Traced(run_id, self._provider.get_tracer("diastole")),) if self._provider else ()
        return Logged(run_id), self._tally, *traced

    def metrics(
        self, hub: Hub, runs: Sequence[ListedRun], folder: Path, security: Security | None
    ) -> tuple[bytes, str]:
        """Return what Prometheus reads, and its type. Raises `ExtraError` without its library."""
        expiry = security.enrollment.authority.expiry if security else None
        return exposition(self._tally, lambda: standing(hub, runs, folder, expiry))
