"""Who has asked a coordinator for what, in its database."""

import logging
import time

from diastole.proto.words import plain
from diastole.server.errors import StoreError
from diastole.server.store.store import Audited, Store

LOG = logging.getLogger(__name__)


class Audit:
    """Writes the audit of one state folder."""

    def __init__(self, place: str, store: Store) -> None:
        self._place, self._store = place, store

    def __call__(self, who: str, call: str, detail: str, outcome: str) -> None:
        """Write a line; a database that cannot be written to does not keep the operator from stopping a run."""
        try:
            self._store.audit(self._place, Audited(time.time(), who, call, plain(detail), plain(outcome)))
        except StoreError as error:
            LOG.warning("no audit of %s by %s: %s", call, who, error)
