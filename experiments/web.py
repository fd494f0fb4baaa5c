"""The dashboard of a coordinator that serves real devices."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diastole.experiments.entry import Entry
from diastole.experiments.home import Home
from diastole.proto.address import Address
from diastole.proto.invitation import SERVER_NAME
from diastole.server.errors import AddressError
from diastole.server.events import Observer
from diastole.server.security.audit import Audit
from diastole.server.security.operators import ADMIN_TOKEN, admin_token
from diastole.server.web.config import WebConfig
from diastole.server.web.libraries import check_libraries
from diastole.server.web.rights import Rights
from diastole.server.web.served import Served
from diastole.server.web.watching import Watching
from diastole.server.wire.listed import ListedRun
from diastole.server.wire.sessions import Sessions

if TYPE_CHECKING:
    from diastole.server.security.security import Security
    from diastole.server.web.app import Scrape
    from diastole.server.web.server import WebServer

WEB_TOKEN, VIEW_TOKEN = "web.token", "view.token"


class Dashboard:
    """Watches a coordinator's runs, and serves the page that shows them.

    Attributes:
        token: the file with what operators log in with.
        reader: the file with what those log in with that may only look.

    """

    def __init__(
        self,
        config: WebConfig,
        home: Home,
        runs: Sequence[ListedRun],
        sessions: Sessions,
        audit: Audit,
        security: "Security | None" = None,
        *,
        certified: bool = False,
        scrape: "Scrape | None" = None,
    ) -> None:
        """Begin to watch; nobody is served before `open`.

        Args:
            config: where it is served.
            home: of the coordinator.
            runs: of the coordinator; they may change.
            sessions: of the devices.
            audit: is told of who logs in, and of what is done.
            security: the coordinator's own authority; None if it has none.
            certified: whether operators of the admin service show certificates, so that they have no token.
            scrape: returns what is at /metrics; None for nothing there.

        Raises `AddressError` off loopback without a certificate, or without the libraries of the dashboard.

        """
        check_libraries()
        self._config, self._security, self._audit, self._scrape = config, security, audit, scrape
        self._address = Address.parse(config.address, listening=True)
        if not self._address.loopback and security is None and config.pair is None:
            raise AddressError(
                f"web {config.address} would send what operators log in with in plain text; a loopback address is "
                "accepted, or enroll, or a certificate and its key"
            )
        self._plain = self._address.loopback and config.pair is None
        self.token = home.folder.path / (WEB_TOKEN if certified else ADMIN_TOKEN)
        self.reader = home.folder.path / VIEW_TOKEN
        self._watching = Watching(Served(runs, sessions, home.folder.path))

    def url(self, port: int) -> str:
        """Return the address of the page."""
        return f"{'http' if self._plain else 'https'}://{self._address.at(port)}/"

    def watch(self, entry: Entry) -> Observer:
        """Return an observer of a run that begins."""
        snapshot = entry.berth.snapshot
        return self._watching.feed(entry.berth.run_id, closed=snapshot.closed if snapshot else ())

    def open(self) -> "WebServer":
        """Serve the page.

        Raises `AddressError` if the address cannot be listened on, and `FolderError` if the tokens cannot be kept.
        """
        from diastole.server.web.app import App
        from diastole.server.web.server import WebServer, listener, tls

        plain = self._plain
        gate = self._security.gate if self._security and not plain else None
        rights = Rights(admin_token(self.token), admin_token(self.reader), gate, self._audit)
        names = {self._address.host, *self._config.names}
        context = None
        if not plain:
            authority = self._security.enrollment.authority if self._security else None
            if self._config.pair is not None:
                certificate, key = self._config.pair
            elif authority is not None:
                certificate, key = authority.pair(SERVER_NAME, *_callable(names))
            context = tls(certificate, key, authority.certificate if authority else None)
        found = listener(self._address)
        port = found.getsockname()[1]
        app = App(self._watching, rights, names=names, secure=not plain, port=port, scrape=self._scrape)
        return WebServer(found, app, context)


def _callable(names: set[str]) -> list[str]:
    """Return the names that a certificate is made for: those given, and those of this machine."""
    given = {name for name in names if name not in ("0.0.0.0", "::")}  # noqa: S104 (a comparison)
    return sorted({*given, "localhost", "127.0.0.1", socket.gethostname()})
