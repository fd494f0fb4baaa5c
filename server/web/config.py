"""How a dashboard is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Where the dashboard is served.

    Attributes:
        address: `host:port`; port 0 for any free one.
        names: under which browsers may call it, beside its addresses, "localhost" and this machine's own name.
        pair: a certificate and its key, PEM, for TLS; None for one of the coordinator's own authority, or on loopback
            for plain text.

    """

    address: str
    names: tuple[str, ...] = ()
    pair: tuple[bytes, bytes] | None = None
