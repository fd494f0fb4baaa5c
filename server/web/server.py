"""The dashboard's web server, in a thread of its own."""

import asyncio
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from diastole.proto.address import Address
from diastole.server.errors import AddressError
from diastole.server.web.app import App
from diastole.server.web.guard import MOST_HEADERS

MOST_CONNECTIONS, FIRST_SECONDS = 128, 10.0
"""Connections at a time, and the seconds within which the first request of one has to be there."""
BACKLOG = 64


class Connection(H11Protocol):
    """One connection: bounded in number and in silence, and with the certificate that its caller shows."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._first = self.loop.call_later(FIRST_SECONDS, self._silent)
        shown = _shown(transport.get_extra_info("ssl_object"))
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self._first.cancel()
            await cast("Any", inner)({**scope, "shown": shown}, receive, send)

        self.app = cast("Any", app)

    def _silent(self) -> None:
        if self.cycle is None and self.transport is not None:
            self.transport.abort()


class WebServer:
    """Serves an application at an address.

    Attributes:
        port: where it is called.

    """

    def __init__(self, listener: socket.socket, app: App, tls: ssl.SSLContext | None = None) -> None:
        """Start serving at a socket that listens, in plain text without `tls`."""
        self.port: int = listener.getsockname()[1]
        self._app, self._listener = app, listener
        config = uvicorn.Config(
            app.asgi,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            # Strangers must not fill the log with what they send.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=MOST_HEADERS,
        )
        config.load()
        config.ssl = tls
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="diastole-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._listener]))

    def _stop(self) -> None:
        self._app.close()
        self._server.should_exit = True


def listener(address: Address) -> socket.socket:
    """Return a socket that listens. Raises `AddressError` if the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address.host, address.port))
        found.listen(BACKLOG)
    except OSError:
        found.close()
        raise AddressError.taken(str(address)) from None
    return found


def tls(certificate: bytes, key: bytes, authority: bytes | None) -> ssl.SSLContext:
    """Return how TLS is spoken, with a certificate and its key; callers may show certificates of an authority. All PEM.

    Raises `AddressError` for a certificate and a key that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # The library reads them from files alone.
        with tempfile.TemporaryDirectory(prefix="diastole-") as folder:
            path = Path(folder) / "pair.pem"
            path.touch(0o600)
            path.write_bytes(key + b"\n" + certificate)
            context.load_cert_chain(path)
        if authority:
            context.load_verify_locations(cadata=authority.decode())
            context.verify_mode = ssl.CERT_OPTIONAL
    except (ssl.SSLError, ValueError):
        raise AddressError("the certificate and the key of the dashboard cannot be used; PEM is accepted") from None
    return context


def _shown(connection: ssl.SSLObject | None) -> dict[str, list[bytes]]:
    """Return what a caller shows of itself, as gRPC tells it; nothing without a certificate."""
    der = connection.getpeercert(binary_form=True) if connection else None
    if connection is None or not der:
        return {}
    found = cast("Any", connection.getpeercert()) or {}
    names = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    return {
        "x509_common_name": [name.encode() for name in names],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(der).encode()],
    }
